"""How large gradients, parameters and their changes are, in each part of the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from gmf_platform.distributed.gradients import (
    gradients_by_name,
    parameters_by_name,
    sums_over_shards,
)
from gmf_platform.optim import part_names

__all__ = ["Magnitudes"]


@dataclass
class _Before:
    """A step as it is before the optimiser moves the parameters.

    Attributes:
        gradients: sums of squares of each part (P,), of what this process holds.
        parameters: likewise.
        copies: the parameters by name; empty if their change is not wanted.
    """

    gradients: Tensor
    parameters: Tensor
    copies: dict[str, Tensor]


class Magnitudes(Callback):
    """Logs Euclidean norms of each part of the model on the steps that are logged.

    ``gradient_norm/PART``, before clipping; ``parameter_norm/PART``; and ``update_ratio/PART``, the
    norm of what the step has added to the parameters over their own. Parts are the stages of the
    backbone and the heads, or in joint training the tasks, and ``all``. DeepSpeed shows the
    gradients of ``all`` alone. What is zero is left out: a head without a turn has no gradient.

    Args:
        updates: log ``update_ratio``, for which the trained parameters are copied between the
            backward pass, when activations have left the memory, and the end of such a step.
    """

    def __init__(self, updates: bool = True) -> None:
        super().__init__()
        self.updates = updates
        self._before: _Before | None = None
        self._part_of: dict[str, str] = {}
        self._parts: list[str] = []

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        """Measure gradients and parameters."""
        if not pl_module.is_logged():  # type: ignore[operator]
            return
        self._part_of = part_names(pl_module.get_submodule("model"))
        self._parts = [*dict.fromkeys(self._part_of.values()), "all"]
        parameters, device = parameters_by_name(trainer), pl_module.device
        self._before = _Before(
            self._squares(gradients_by_name(trainer), device),
            self._squares(parameters, device),
            {name: x.clone() for name, x in parameters.items()} if self.updates else {},
        )

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Measure what the step has changed, and log."""
        before, self._before = self._before, None
        if before is None:
            return
        after = parameters_by_name(trainer) if before.copies else {}
        if before.copies:
            own, moved = zip(*((x, after[n]) for n, x in before.copies.items()), strict=True)
            torch._foreach_sub_(own, moved)
        changes = self._squares(before.copies, pl_module.device)
        squares = sums_over_shards(
            trainer,
            of_gradients=before.gradients,
            of_parameters=torch.cat([before.parameters, changes]),
        )
        norms = torch.cat(squares).sqrt().view(3, -1).tolist()
        for logger in trainer.loggers:  # Lightning numbers its first step 0
            logger.log_metrics(self._named(*norms), step=trainer.global_step - 1)

    def _squares(self, tensors: Mapping[str, Tensor], device: torch.device) -> Tensor:
        """Sums of squares of each part."""
        if not tensors:
            return torch.zeros(len(self._parts), device=device)
        squares = torch.stack(torch._foreach_norm(list(tensors.values()))).float().square()
        inside = [[part in (self._part_of.get(n), "all") for n in tensors] for part in self._parts]
        return (squares.to(device) * torch.tensor(inside, device=device)).sum(1)

    def _named(
        self, gradients: list[float], parameters: list[float], changes: list[float]
    ) -> dict[str, float]:
        """The norms by tag."""
        named: dict[str, float] = {}
        rows = zip(self._parts, gradients, parameters, changes, strict=True)
        for part, gradient, parameter, change in rows:
            named[f"gradient_norm/{part}"] = gradient
            named[f"parameter_norm/{part}"] = parameter
            named[f"update_ratio/{part}"] = change / parameter if parameter else 0.0
        return {tag: value for tag, value in named.items() if value}
