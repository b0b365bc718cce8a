"""Backward passes of several losses in one step, under any strategy."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from gmf_platform.distributed.gradients import average_over_processes, local
from gmf_platform.distributed.strategies import FSDP

__all__ = ["JointBackward"]

Gradients = list[Tensor | None]


class JointBackward:
    """One backward pass for each loss of a step, so that only one graph is held at a time.

    Gradients meet over processes once a step, or once a task where tasks' gradients on the shared
    parameters are kept apart. DDP's own reducer takes one backward pass a step: it is switched off
    and its part done here. FSDP reduces in the last pass. Not for ZeRO, which takes one pass too.

    Args:
        trainer: of the run.
        model: all that is trained.
        shared: the part of it that all tasks have gradients on.
    """

    def __init__(self, trainer: Trainer, model: nn.Module, shared: nn.Module) -> None:
        self.trainer, self.model = trainer, model
        self.shared = [p for p in shared.parameters() if p.requires_grad]
        within = {id(p) for p in self.shared}
        self.rest = [p for p in model.parameters() if p.requires_grad and id(p) not in within]
        self._apart: list[Gradients] | None = None

    def begin(self, *, apart: bool) -> None:
        """Begin a step.

        Args:
            apart: keep the tasks' gradients on the shared parameters apart.
        """
        for parameter in (*self.shared, *self.rest):
            parameter.grad = None
        self._apart = [] if apart else None
        if isinstance(self.trainer.strategy.model, DistributedDataParallel):
            self.trainer.strategy.model.require_backward_grad_sync = False

    def backward(self, loss: Tensor, *, ends_task: bool, ends_step: bool) -> None:
        """Add a loss's gradients.

        Args:
            loss: a share of a task's loss.
            ends_task: it is the task's last one.
            ends_step: and the step's.
        """
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(ends_step if self._apart is None else ends_task)
        scaler: Any = getattr(self.trainer.precision_plugin, "scaler", None)
        with torch.autocast(loss.device.type, enabled=False):
            (loss if scaler is None else scaler.scale(loss)).backward()
        if ends_task and self._apart is not None:
            self._apart.append([p.grad for p in self.shared])
            for parameter in self.shared:
                parameter.grad = None

    def finish(self, join: Callable[[Tensor], Sequence[float]]) -> Tensor | None:
        """Bring together the gradients of all processes and of all tasks.

        Args:
            join: dot products of the tasks' gradients on the shared parameters, float64 (T, T) on
                the CPU, to the factor of each in their sum; the same on all processes.

        Returns:
            The dot products, of loss-scaled gradients where the loss is scaled; None where tasks
            were not kept apart.
        """
        if self._apart is None:
            self._average([p.grad for p in (*self.shared, *self.rest)])
            return None
        self._average([p.grad for p in self.rest])
        for gradients in self._apart:
            self._average(gradients)
        dots = self._dots(self._apart)
        self._sum(self._apart, join(dots))
        self._apart = None
        return dots

    def _average(self, gradients: Gradients) -> None:
        if not isinstance(self.trainer.strategy, FSDP):
            average_over_processes([g for g in gradients if g is not None])

    def _dots(self, tasks: list[Gradients]) -> Tensor:
        """Dot products of all pairs, the same on all processes."""
        values = [_dot(a, b) for i, a in enumerate(tasks) for b in tasks[: i + 1]]
        flat = torch.stack(values)
        if self.trainer.world_size > 1:
            if isinstance(self.trainer.strategy, FSDP):
                dist.all_reduce(flat)  # each process has dotted its shards
            dist.broadcast(flat, src=0)
        dots = torch.zeros(len(tasks), len(tasks), dtype=torch.float64)
        rows, columns = torch.tril_indices(len(tasks), len(tasks))
        dots[rows, columns] = dots[columns, rows] = flat.cpu()
        return dots

    @torch.no_grad()
    def _sum(self, tasks: list[Gradients], factors: Sequence[float]) -> None:
        """Sum the gradients times their factors, in place of the first that a parameter has."""
        for gradients, factor in zip(tasks, factors, strict=True):
            held = [(p, g) for p, g in zip(self.shared, gradients, strict=True) if g is not None]
            if factor != 1:
                torch._foreach_mul_([local(g) for _, g in held], factor)
            into = [(p.grad, g) for p, g in held if p.grad is not None]
            if into:
                torch._foreach_add_([local(a) for a, _ in into], [local(b) for _, b in into])
            for parameter, gradient in held:
                if parameter.grad is None:
                    parameter.grad = gradient


@torch.no_grad()
def _dot(one: Gradients, other: Gradients) -> Tensor:
    """The dot product of what this process holds, float64 ()."""
    pairs = [
        (local(a), local(b))
        for a, b in zip(one, other, strict=True)
        if a is not None and b is not None
    ]
    if not pairs:
        return torch.zeros((), dtype=torch.float64)
    products = torch._foreach_mul(*([*column] for column in zip(*pairs, strict=True)))
    return torch.cat([x.flatten() for x in products]).sum(dtype=torch.float64)
