"""Learning-rate schedules, as factors of the base rate by optimiser step."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

from gmf_platform.errors import UserError
from gmf_platform.ranges import NonNegativeFloat, NonNegativeInt, PositiveFloat, UnitInterval

__all__ = ["Cosine", "MultiStep", "Polynomial", "Schedule"]


class Schedule(ABC):
    """A learning-rate schedule over a run of known length."""

    @abstractmethod
    def factor(self, step: int, total_steps: int, *, steps_per_epoch: float | None = None) -> float:
        """Factor of the base learning rate at an optimiser step.

        Args:
            step: optimiser step, the first is 0.
            total_steps: optimiser steps of the run.
            steps_per_epoch: optimiser steps in which the data is seen once, for schedules that
                count in epochs; None: not known.

        Raises:
            UserError: the schedule needs epochs, and their length is not known.
        """


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
        warmup_steps: NonNegativeInt = 1500,
        warmup_ratio: UnitInterval = 1e-6,
        power: NonNegativeFloat = 1.0,
        min_factor: UnitInterval = 0.0,
    ) -> None:
        self.warmup_steps, self.warmup_ratio = warmup_steps, warmup_ratio
        self.power, self.min_factor = power, min_factor

    def factor(self, step: int, total_steps: int, *, steps_per_epoch: float | None = None) -> float:
        """Factor of the base learning rate at optimiser step ``step``; see Schedule."""
        left = max(0.0, 1 - step / total_steps)
        decayed = (1 - self.min_factor) * left**self.power + self.min_factor
        return decayed * _warmed_up(step, self.warmup_steps, self.warmup_ratio)


class MultiStep(Schedule):
    """A rate that falls at milestones, under a linear warm-up.

    mmcv's ``policy='step', warmup='linear'``, which the detection recipes of Swin and PVT use
    (configs/_base_/schedules/schedule_1x.py): epochs 8 and 11 of 12, or 27 and 33 of 36.

    Args:
        milestones: epochs after which the rate is multiplied by ``gamma``.
        gamma: see above.
        warmup_steps: optimiser steps of warm-up; 0 for none.
        warmup_ratio: share of the scheduled rate at the first step.
    """

    def __init__(
        self,
        *,
        milestones: Sequence[NonNegativeFloat] = (8, 11),
        gamma: PositiveFloat = 0.1,
        warmup_steps: NonNegativeInt = 500,
        warmup_ratio: UnitInterval = 1e-3,
    ) -> None:
        self.milestones, self.gamma = tuple(milestones), gamma
        self.warmup_steps, self.warmup_ratio = warmup_steps, warmup_ratio

    def factor(self, step: int, total_steps: int, *, steps_per_epoch: float | None = None) -> float:
        """Factor of the base learning rate at optimiser step ``step``; see Schedule."""
        passed = [m for m in self.milestones if step >= _in_steps(m, steps_per_epoch)]
        decayed = self.gamma ** len(passed)
        return decayed * _warmed_up(step, self.warmup_steps, self.warmup_ratio)


class Cosine(Schedule):
    """Half a cosine to the run's end, of which a linear warm-up replaces the beginning.

    timm's CosineLRScheduler without ``warmup_prefix``, stepped at each iteration, as
    GroupMixFormer's ImageNet code has it (lr_scheduler.py): the cosine begins at step 0, so that
    the rate falls a little, from the base rate onto the curve, where the warm-up ends.

    Args:
        warmup_epochs: length of the warm-up in epochs.
        warmup_steps: the same in optimiser steps; give one of the two, or none for no warm-up.
        warmup_factor: the factor at the first step of the warm-up.
        min_factor: the factor at the end.

    Raises:
        UserError: if the warm-up's length is given in both units.
    """

    def __init__(
        self,
        *,
        warmup_epochs: NonNegativeFloat | None = None,
        warmup_steps: NonNegativeInt | None = None,
        warmup_factor: UnitInterval = 1e-3,
        min_factor: UnitInterval = 1e-2,
    ) -> None:
        if warmup_epochs is not None and warmup_steps is not None:
            raise UserError(
                f"model.schedule: warmup_epochs ({warmup_epochs}) and warmup_steps "
                f"({warmup_steps}) are one length in two units: set one of them to null"
            )
        self.warmup_epochs, self.warmup_steps = warmup_epochs, warmup_steps
        self.warmup_factor, self.min_factor = warmup_factor, min_factor

    def factor(self, step: int, total_steps: int, *, steps_per_epoch: float | None = None) -> float:
        """Factor of the base learning rate at optimiser step ``step``; see Schedule."""
        warmup = self.warmup_steps or 0
        if self.warmup_epochs:
            warmup = int(_in_steps(self.warmup_epochs, steps_per_epoch))  # rounded as the authors
        if step < warmup:
            return self.warmup_factor + (1 - self.warmup_factor) * step / warmup
        angle = math.pi * min(1.0, step / total_steps)
        return self.min_factor + (1 - self.min_factor) * (1 + math.cos(angle)) / 2


def _warmed_up(step: int, warmup_steps: int, ratio: float) -> float:
    """Mmcv's linear warm-up: the share of the scheduled rate at a step."""
    return 1.0 if step >= warmup_steps else 1 - (1 - step / warmup_steps) * (1 - ratio)


def _in_steps(epochs: float, steps_per_epoch: float | None) -> float:
    if steps_per_epoch is None:
        raise UserError(
            "model.schedule counts in epochs, whose length is the datamodule's to say: train with "
            "a datamodule that has steps_per_epoch(), or take a schedule that counts in steps"
        )
    return epochs * steps_per_epoch
