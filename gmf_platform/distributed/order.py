"""Which sample comes when: a pure function of (seed, position), whatever the ranks and workers.

A training run is one endless sequence of samples: epoch 0's permutation, then epoch 1's, and so
on. Position ``p`` of that sequence is sample ``permutation(seed, p // n)[p % n]``. Each step takes
the next ``global_batch_size`` positions, so the whole state of the data is one number, the samples
consumed, and a run can go on with another number of processes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gmf_platform.errors import UserError

__all__ = ["BatchPlan", "EvalBatches", "SampleKey", "SampleOrder", "TrainBatches", "plan_batches"]


class SampleKey(NamedTuple):
    """What a dataset is indexed with: the augmentation is a function of (seed, epoch, sample)."""

    epoch: int
    sample: int


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is made: ``per_device * world_size * accumulate`` samples a step."""

    global_batch_size: int
    per_device: int
    accumulate: int
    world_size: int


def plan_batches(global_batch_size: int, world_size: int, per_device: int | None) -> BatchPlan:
    """Derive the per-device batch and the gradient accumulation from the global batch.

    Args:
        global_batch_size: samples per optimiser step, over all devices.
        world_size: number of processes.
        per_device: the most samples a device takes at once; None: as many as its share is.

    Raises:
        UserError: the numbers do not divide; the message names values that would.
    """
    if global_batch_size < 1 or (per_device is not None and per_device < 1):
        raise UserError("data.global_batch_size and data.per_device_batch_size must be positive")
    if global_batch_size % world_size:
        down = global_batch_size // world_size * world_size
        fits = " or ".join(str(size) for size in (down, down + world_size) if size)
        raise UserError(
            f"data.global_batch_size {global_batch_size} cannot be shared by {world_size} "
            f"devices: set it to {fits}, or train on another number of devices"
        )
    share = global_batch_size // world_size
    per_device = share if per_device is None else per_device
    if share % per_device:
        fits = ", ".join(str(size) for size in range(1, share + 1) if share % size == 0)
        raise UserError(
            f"data.per_device_batch_size {per_device} does not divide the {share} samples a step "
            f"of each device (data.global_batch_size {global_batch_size} on {world_size} "
            f"devices): one of {fits} would"
        )
    return BatchPlan(global_batch_size, per_device, share // per_device, world_size)


class SampleOrder:
    """The endless sequence of samples of a run.

    Args:
        num_samples: size of the data set.
        seed: the run's seed.
    """

    def __init__(self, num_samples: int, *, seed: int) -> None:
        self.num_samples = num_samples
        self.seed = seed
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def __getitem__(self, position: int) -> SampleKey:
        """The sample at a position of the endless sequence."""
        epoch, offset = divmod(position, self.num_samples)
        if epoch != self._epoch:
            generator = np.random.default_rng((self.seed, epoch))
            self._permutation, self._epoch = generator.permutation(self.num_samples), epoch
        return SampleKey(epoch, int(self._permutation[offset]))


class TrainBatches:
    """Batch sampler of one rank: its slice of each micro-batch from ``start`` to the run's end.

    Args:
        order: the endless sequence.
        plan: how a step's global batch is shared.
        rank: this process.
        steps: optimiser steps of the whole run.
    """

    def __init__(self, order: SampleOrder, plan: BatchPlan, *, rank: int, steps: int) -> None:
        self.order, self.plan, self.rank, self.steps = order, plan, rank, steps
        self.start = 0

    def __len__(self) -> int:
        """Micro-batches of the whole run, those already done included."""
        return self.steps * self.plan.accumulate

    @property
    def samples_per_batch(self) -> int:
        """Samples that all ranks together take with each micro-batch."""
        return self.plan.per_device * self.plan.world_size

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for number in range(self.start, len(self)):
            first = number * self.samples_per_batch + self.rank * self.plan.per_device
            yield [self.order[first + i] for i in range(self.plan.per_device)]


class EvalBatches:
    """Batch sampler of one rank in evaluation: whole batches are dealt to the ranks in turn.

    Padding to a batch mate's size changes features, so which images share a batch is a function
    of the data set alone. No sample is repeated or left out; ranks may hold unequal numbers.

    Args:
        groups: index lists, one a batch.
        rank: this process.
        world_size: number of processes.
    """

    def __init__(self, groups: Sequence[Sequence[int]], *, rank: int, world_size: int) -> None:
        self.batches = [[SampleKey(0, i) for i in group] for group in groups[rank::world_size]]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return iter(self.batches)
