"""Whose turn a step of joint training is, where each step is of one task."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from gmf_platform.errors import UserError
from gmf_platform.ranges import NonNegativeFloat

__all__ = ["BySize", "Ratios", "RoundRobin", "Turns"]


class Turns(ABC):
    """Chooses the task of a step: a function of (seed, step), the same on every process."""

    @abstractmethod
    def shares(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """The share of the steps that each task gets in the long run; they sum to 1.

        Args:
            sizes: training samples of each task.

        Raises:
            UserError: the config does not fit the tasks.
        """

    def task(self, step: int, *, sizes: Mapping[str, int], seed: int) -> str:
        """The task of an optimiser step, drawn by the shares.

        Args:
            step: from 0.
            sizes: training samples of each task.
            seed: of the run.
        """
        shares = self.shares(sizes)
        drawn = np.random.default_rng((seed, step)).choice(len(shares), p=list(shares.values()))
        return list(shares)[drawn]


class RoundRobin(Turns):
    """One after the other, in the order of the config."""

    def shares(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """The same share each."""
        return dict.fromkeys(sizes, 1 / len(sizes))

    def task(self, step: int, *, sizes: Mapping[str, int], seed: int) -> str:
        """The task of an optimiser step; nothing is drawn."""
        return list(sizes)[step % len(sizes)]


class Ratios(Turns):
    """Drawn by fixed ratios.

    Args:
        ratios: of each task, of any sum: ``{cls: 2, seg: 1}`` is two steps in three for ``cls``.
    """

    def __init__(self, ratios: dict[str, float]) -> None:
        self.ratios = ratios

    def shares(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """The ratios over their sum.

        Raises:
            UserError: a task without a ratio, a ratio without a task, or one that is not positive.
        """
        wrong = sorted(self.ratios.keys() ^ sizes.keys())
        wrong += [name for name, ratio in self.ratios.items() if ratio <= 0]
        if wrong:
            raise UserError(
                f"data.turns.ratios: {wrong[0]}: give each of {', '.join(sizes)} a ratio above 0, "
                "and nothing else"
            )
        total = sum(self.ratios.values())
        return {name: self.ratios[name] / total for name in sizes}


class BySize(Turns):
    """Drawn by the size of the tasks' data, to a power.

    Args:
        power: 1 in proportion to the size, 0 the same share each.
    """

    def __init__(self, power: NonNegativeFloat = 1.0) -> None:
        self.power = power

    def shares(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """``size ** power`` over its sum."""
        parts = {name: float(size) ** self.power for name, size in sizes.items()}
        return {name: part / sum(parts.values()) for name, part in parts.items()}
