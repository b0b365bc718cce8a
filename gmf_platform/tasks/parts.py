"""Single tasks as parts of joint training."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Protocol

from lightning.pytorch.cli import OptimizerCallable
from torch import nn

from gmf_platform.errors import UserError
from gmf_platform.models.norm import NormMode
from gmf_platform.optim import Schedule
from gmf_platform.tasks.base import BaseTask

__all__ = ["TaskFactory", "check_partners", "classes_by_task"]


class TaskFactory(Protocol):
    """Makes a task on a backbone that is not its own; what is trained how is not its affair."""

    def __call__(
        self,
        class_names: Sequence[str],
        *,
        backbone: nn.Module,
        optimizer: OptimizerCallable = ...,
        schedule: Schedule | None = None,
        lr_for_batch_size: int | None = None,
        decay_norms_and_biases: bool = False,
        layer_decay: float | None = None,
        lr_factors: dict[str, float] | None = None,
        frozen_stages: int = 0,
        norm: NormMode = "sync",
        compile: bool = False,
        seed: int = 0,
    ) -> BaseTask:
        """Make it."""


def classes_by_task(class_names: Sequence[str]) -> dict[str, list[str]]:
    """``TASK/CLASS`` -> the classes of each task."""
    classes: dict[str, list[str]] = defaultdict(list)
    for name in class_names:
        task, _, label = name.partition("/")
        classes[task].append(label)
    return classes


def check_partners(tasks: Collection[str], data: Collection[str]) -> None:
    """Check that tasks and data have the same names.

    Raises:
        UserError: a task without data, or data without a task.
    """
    for name in tasks:
        if name not in data:
            raise UserError(
                f"model.tasks.{name}: has no data: add data.tasks.{name}, or leave the task out; "
                f"there is data for {', '.join(data)}"
            )
    for name in data:
        if name not in tasks:
            raise UserError(
                f"data.tasks.{name}: nothing is trained on it: add model.tasks.{name}, or leave "
                f"the data out; the tasks are {', '.join(tasks)}"
            )
