"""Learning-rate schedules, as factors of the base rate by optimiser step."""

from abc import ABC, abstractmethod

__all__ = ["Polynomial", "Schedule"]


class Schedule(ABC):
    """A learning-rate schedule over a run of known length."""

    @abstractmethod
    def factor(self, step: int, total_steps: int) -> float:
        """Factor of the base learning rate at optimiser step ``step`` (0-based)."""


class Polynomial(Schedule):
    """Polynomial decay to the run's end under a linear warm-up.

    ``(1 - step / total) ** power``, scaled up linearly from ``warmup_ratio`` during the first
    ``warmup_steps``: mmcv's ``policy='poly', warmup='linear'``, which the Swin segmentation
    recipes use (configs/swin/upernet_swin_*_160k_ade20k.py).

    Args:
        warmup_steps: optimiser steps of warm-up; 0 for none.
        warmup_ratio: share of the scheduled rate at the first step.
        power: of the decay; 1 is linear.
        min_factor: the factor at the end, as a share of the base rate.
    """

    def __init__(
        self,
        *,
        warmup_steps: int = 1500,
        warmup_ratio: float = 1e-6,
        power: float = 1.0,
        min_factor: float = 0.0,
    ) -> None:
        self.warmup_steps, self.warmup_ratio = warmup_steps, warmup_ratio
        self.power, self.min_factor = power, min_factor

    def factor(self, step: int, total_steps: int) -> float:
        """Factor of the base learning rate at optimiser step ``step`` (0-based)."""
        left = max(0.0, 1 - step / total_steps)
        decayed = (1 - self.min_factor) * left**self.power + self.min_factor
        if step >= self.warmup_steps:
            return decayed
        missing = (1 - step / self.warmup_steps) * (1 - self.warmup_ratio)
        return decayed * (1 - missing)
