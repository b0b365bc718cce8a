"""Where a verb's words go: the console, the run's log.txt, and the advice in errors."""

import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, Trainer

from gmf_platform.callbacks.progress import STEPS, Progress
from gmf_platform.cli.experiment import Experiment, is_first_process
from gmf_platform.distributed.order import BatchPlan
from gmf_platform.errors import UserError, counted
from gmf_platform.models.norm import NormMode

__all__ = ["StepTimer", "advising_on_memory", "log_to", "norm_advice", "rounded"]

_LEAST_FOR_NORM = 4
"""Samples under which the statistics of a batch norm are too noisy: a "micro-batch" in Wang et
al., Kalman Normalization (NeurIPS 2018). At 2, ResNet-50 errs 10.6 points of top-1 more with batch
norm than with group norm (Wu and He, Group Normalization, arXiv 1803.08494)."""


def log_to(file: Path | None) -> None:
    """Send our log lines to the console and to a file, those of the first process alone.

    Where there is a progress bar, the lines that it stands for go to the file alone.
    """
    root = logging.getLogger("gmf_platform")
    root.setLevel(logging.INFO)
    root.propagate = False
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    if not is_first_process():
        root.addHandler(logging.NullHandler())  # without any, warnings would go to stderr
        return
    console = _Console()
    if Progress.is_bar_wanted():
        console.addFilter(lambda record: record.name != STEPS)
    root.addHandler(console)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        root.addHandler(handler)


class _Console(logging.Handler):
    """Writes to what is standard output at the time: a bar puts lines above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), flush=True)
        except OSError:
            self.handleError(record)


def rounded(score: Mapping[str, Any]) -> dict[str, Any]:
    """A line of scores with the digits that float32 has: 0.3 and not 0.30000001192."""
    return {k: float(str(np.float32(v))) if isinstance(v, float) else v for k, v in score.items()}


@contextmanager
def advising_on_memory(experiment: Experiment) -> Iterator[None]:
    """Turn a full device, or a loading process that was killed, into advice on what to change.

    Raises:
        UserError: the memory was not enough.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(_memory_advice(experiment, str(error).splitlines()[0])) from None
    except RuntimeError as error:
        # torch raises it from a signal's handler, at any place.
        if not str(error).startswith("DataLoader worker"):
            raise
        raise UserError(_worker_advice(experiment, str(error).splitlines()[0])) from None


def _worker_advice(experiment: Experiment, said: str) -> str:
    lines = [f"a process that loads data has died ({said})"]
    if "Bus error" in said:  # what a full shared memory looks like
        shared = shutil.disk_usage("/dev/shm")
        size = f"{shared.free / 2**30:.1f} of {shared.total / 2**30:.1f} GiB are free"
        lines.append(f"  - /dev/shm is too small: {size}; docker has --shm-size")
    count = experiment.datamodule.num_workers
    lines.append(f"  - memory may have run out: fewer than {count}, with --data.num_workers")
    if experiment.trainer.state.fn == "fit":
        lines.append("  - the same command goes on from the last checkpoint")
    return "\n".join(lines)


def _memory_advice(experiment: Experiment, said: str) -> str:
    trainer, data = experiment.trainer, experiment.datamodule
    plans = data.plans(trainer.world_size)
    if "" not in plans and trainer.state.fn != "predict":
        return _joint_memory_advice(plans, said)
    if trainer.state.fn != "fit":
        count = data.eval_batch_size
        fewer = [f"fewer at once: --data.eval_batch_size {count // 2}"] if count > 1 else []
        last = "on the CPU: --trainer.accelerator cpu"
        advice = [*fewer, data.smaller_evaluation, last]
    else:
        count = plans[""].per_device
        last = "a smaller network: --model.backbone.variant"
        advice = [*_smaller_parts(count), *_less_kept(experiment), data.smaller_training, last]
    head = f"out of memory with {counted(count, 'image', 'images')} per device ({said})"
    return "\n  - ".join([head, *advice])


def _smaller_parts(per_device: int) -> list[str]:
    """The largest smaller batch that still makes up a device's share."""
    if per_device == 1:
        return []
    smaller = max(n for n in range(1, per_device) if per_device % n == 0)
    option = f"--data.per_device_batch_size {smaller}"
    seen = counted(smaller, "image", "images")
    rest = f"    (the rest is accumulated; batch norm then sees {seen})"
    return [f"fewer at once, same global batch: {option}\n{rest}"]


def _less_kept(experiment: Experiment) -> list[str]:
    """Checkpointing, of a backbone that has it and does without."""
    backbone = experiment.task.model.get_submodule("backbone")
    used = [part.checkpointing for part in backbone.modules() if hasattr(part, "checkpointing")]
    if any(used) or not used:
        return []
    return ["less kept for backward: --model.backbone.checkpointing true"]


def _joint_memory_advice(plans: Mapping[str, BatchPlan], said: str) -> str:
    lines = [f"out of memory ({said})", "  - fewer of a task at once; the rest is accumulated:"]
    for name, plan in plans.items():
        lines.append(f"    --data.tasks.{name}.per_device_batch_size, now {plan.per_device}")
    lines.append("  - fewer of a task at once in evaluation: --data.tasks.TASK.eval_batch_size 1")
    lines.append("  - less kept for backward: --model.backbone.checkpointing true")
    return "\n".join([*lines, "  - smaller images or a smaller --model.backbone.variant"])


def norm_advice(norm: NormMode, plan: BatchPlan, *, data: str = "data") -> str:
    """A warning where batch norms see too few samples at a time; empty where they don't.

    Args:
        norm: mode of the backbone's batch norms.
        plan: per-device batch and devices; accumulated parts are normalised each by itself.
        data: the key that the batch is under.
    """
    seen = plan.per_device * (plan.world_size if norm == "sync" else 1)
    if seen >= _LEAST_FOR_NORM:
        return ""
    if norm == "frozen":
        return f"the backbone's batch norms are frozen; those of the heads see {seen} samples"
    advice = (
        f"batch norms see {seen} samples at a time, and of fewer than {_LEAST_FOR_NORM} their "
        "statistics are poor, however many are accumulated\n"
        f"  - more at once: --{data}.per_device_batch_size, with --model.backbone.checkpointing true "
        "where memory is short\n"
        "  - or the pretrained statistics, left as they are: --model.norm frozen"
    )
    if norm == "train" and plan.per_device * plan.world_size >= _LEAST_FOR_NORM:
        advice += "\n  - or statistics over all devices: --model.norm sync"
    return advice


class StepTimer(Callback):
    """Wall time of each optimiser step, in seconds."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._since = 0.0

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Begin."""
        self._since = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Note a step that is complete."""
        if trainer.global_step > len(self.seconds):
            now = time.perf_counter()
            self.seconds.append(now - self._since)
            self._since = now
