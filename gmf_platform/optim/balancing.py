"""How the losses of several tasks are weighed, and their gradients joined on what they share."""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from gmf_platform.errors import UserError

__all__ = ["Balancing", "BalancingFactory", "FixedWeights", "PCGrad", "Uncertainty"]


class Balancing(nn.Module):
    """Base: fixed weights, and gradients that are summed.

    Args:
        tasks: their names.
        weights: of the tasks' losses; 1 for a task that is not named.

    Raises:
        UserError: a weight is not positive, or of no task.

    Attributes:
        surgery: `coefficients` says more than that gradients are summed.
    """

    surgery: ClassVar[bool] = False

    def __init__(self, tasks: Sequence[str], *, weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        given = dict(weights or {})
        for name, weight in given.items():
            if name not in tasks:
                raise UserError(
                    f"model.balancing.weights.{name}: there is no such task; the tasks are "
                    f"{', '.join(tasks)}"
                )
            if not weight > 0:
                raise UserError(
                    f"model.balancing.weights.{name}: {weight} is not above 0; leave a task out "
                    "of model.tasks and data.tasks to train without it"
                )
        self.weights = {name: float(given.get(name, 1.0)) for name in tasks}

    def forward(self, task: str, loss: Tensor) -> Tensor:
        """A task's loss as it goes into the sum that is trained on."""
        return self.weights[task] * loss

    def weight(self, task: str) -> float | Tensor:
        """What a task's loss is multiplied by."""
        return self.weights[task]

    def coefficients(self, gram: Tensor, *, seed: tuple[int, int]) -> list[float]:
        """What each task's gradient on the shared parameters is multiplied by in their sum.

        Args:
            gram: float64 (T, T), dot products of the tasks' gradients.
            seed: of what is random: the run's, and the step.
        """
        return [1.0] * len(gram)


BalancingFactory = Callable[[Sequence[str]], Balancing]
"""Makes a balancing from the tasks' names."""


class FixedWeights(Balancing):
    """The losses times weights of the config."""


class Uncertainty(Balancing):
    """Weights that are learned: homoscedastic uncertainty.

    A. Kendall, Y. Gal, R. Cipolla, Multi-Task Learning Using Uncertainty to Weigh Losses (CVPR
    2018, arXiv 1705.07115), in the form of section 3.2 for classification: ``exp(-s) loss + s /
    2`` with ``s`` the logarithm of a task's variance, which is learned as they advise.

    Args:
        tasks: their names.
        weights: at the beginning.
    """

    def __init__(self, tasks: Sequence[str], *, weights: Mapping[str, float] | None = None) -> None:
        super().__init__(tasks, weights=weights)
        # One of its own for each task, so that a task without a turn has no gradient; not scalars,
        # which cannot be sharded.
        self.log_variances = nn.ParameterDict(
            {name: -torch.tensor([weight]).log() for name, weight in self.weights.items()}
        )
        self._last: dict[str, Tensor] = {}

    def forward(self, task: str, loss: Tensor) -> Tensor:
        """The loss over its variance, plus what keeps the variance from growing."""
        log_variance = self.log_variances[task].float().sum()
        weight = torch.exp(-log_variance)
        self._last[task] = weight.detach()  # where parameters are in shards, they are whole here
        return weight * loss + log_variance / 2

    def weight(self, task: str) -> float | Tensor:
        """What a task's loss was multiplied by last."""
        return self._last.get(task, self.weights[task])


class PCGrad(Balancing):
    """Gradient surgery: a task's gradient loses what points against another task's.

    T. Yu et al., Gradient Surgery for Multi-Task Learning (NeurIPS 2020, arXiv 2001.06782),
    algorithm 1: each gradient is projected, for each other one in random order that it conflicts
    with, onto the normal plane of that one as it was; then they are summed. What comes out is a
    sum of the gradients themselves, whose coefficients follow from their dot products.
    """

    surgery = True

    def coefficients(self, gram: Tensor, *, seed: tuple[int, int]) -> list[float]:
        """See the base class."""
        dots = gram.numpy()
        mixed = np.eye(len(dots))
        generator = np.random.default_rng(seed)
        for i, own in enumerate(mixed):
            for j in generator.permutation(len(dots)):
                dot = own @ dots[:, j]
                if j != i and dot < 0:
                    own[j] -= dot / dots[j, j]
        return [float(x) for x in mixed.sum(0)]
