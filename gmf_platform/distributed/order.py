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
from numpy.typing import NDArray

from gmf_platform.errors import UserError, check_least

__all__ = [
    "BatchPlan",
    "EvalBatches",
    "GroupedOrder",
    "SampleKey",
    "SampleOrder",
    "TrainBatches",
    "plan_batches",
]


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
    check_least("data.global_batch_size", global_batch_size)
    check_least("data.per_device_batch_size", 1 if per_device is None else per_device)
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


class GroupedOrder(SampleOrder):
    """An endless sequence whose global batches hold samples of one group each.

    Each group has an endless sequence of its own, cut into global batches. Epoch ``e`` shuffles
    the batches that the groups have full within their first ``e + 1`` passes and not used before:
    ``floor((e + 1) n_g / b) - floor(e n_g / b)`` of a group of ``n_g``. What is left over, less
    than a batch of each group, opens the next epoch. So each sample comes once in each pass over
    its group, and groups are never more than a batch from their share. A group smaller than a
    batch would repeat samples within one: then nothing is grouped.

    Args:
        groups: the group of each sample, any numbers (N,).
        seed: the run's seed.
        batch_size: samples per optimiser step, so that the order does not depend on the processes.
    """

    def __init__(self, groups: Sequence[int], *, seed: int, batch_size: int) -> None:
        super().__init__(len(groups), seed=seed)
        self.batch_size = batch_size
        self._members = _members(np.asarray(groups), at_least=batch_size)
        self._orders = [
            SampleOrder(len(members), seed=_sub_seed(seed, group))
            for group, members in enumerate(self._members)
        ]
        self._batches: list[tuple[int, int]] = []

    @property
    def is_mixed(self) -> bool:
        """Whether a batch may hold samples of several groups, since one is too small."""
        return len(self._members) == 1

    def __getitem__(self, position: int) -> SampleKey:
        """The sample at a position of the endless sequence; ``epoch`` counts its group's passes."""
        batch, offset = divmod(position, self.batch_size)
        group, number = self._batch(batch)
        epoch, member = self._orders[group][number * self.batch_size + offset]
        return SampleKey(epoch, int(self._members[group][member]))

    def _batch(self, batch: int) -> tuple[int, int]:
        """The group of a batch of the sequence, and the batch's number in its group."""
        epoch = batch * self.batch_size // self.num_samples
        while sum(self._full(epoch + 1)) <= batch:
            epoch += 1
        if epoch != self._epoch:
            spans = zip(self._full(epoch), self._full(epoch + 1), strict=True)
            batches = [(g, number) for g, span in enumerate(spans) for number in range(*span)]
            shuffled = np.random.default_rng((self.seed, epoch)).permutation(len(batches))
            self._batches, self._epoch = [batches[i] for i in shuffled], epoch
        return self._batches[batch - sum(self._full(epoch))]

    def _full(self, passes: int) -> list[int]:
        """How many whole batches each group has in so many passes."""
        return [passes * len(members) // self.batch_size for members in self._members]


def _members(groups: NDArray[np.int64], *, at_least: int) -> list[NDArray[np.int64]]:
    """The samples of each group; all in one if a group has too few."""
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    return members if all(len(m) >= at_least for m in members) else [np.arange(len(groups))]


def _sub_seed(seed: int, group: int) -> int:
    return int(np.random.SeedSequence((seed, group)).generate_state(1, np.uint64)[0])


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
