"""Batches of one group each: every sample once a pass, whatever the ranks and restarts."""

from collections import Counter

import numpy as np
import pytest

from gmf_platform.distributed.order import GroupedOrder, SampleOrder, TrainBatches, plan_batches

WIDE, HIGH, BATCH = 23, 11, 4  # neither is a multiple of the batch
GROUPS = np.random.default_rng(0).permutation([0] * WIDE + [1] * HIGH).tolist()
STEPS = 60


def make(seed=3, groups=GROUPS, batch=BATCH):
    return GroupedOrder(groups, seed=seed, batch_size=batch)


SEQUENCE = [make()[position] for position in range(STEPS * BATCH)]


def test_batches_hold_one_group():
    batches = [SEQUENCE[i : i + BATCH] for i in range(0, len(SEQUENCE), BATCH)]
    kinds = [{GROUPS[key.sample] for key in batch} for batch in batches]
    assert all(len(kind) == 1 for kind in kinds)
    assert {next(iter(kind)) for kind in kinds} == {0, 1}
    assert not make().is_mixed


def test_each_sample_once_in_each_pass_over_its_group():
    assert set(Counter(SEQUENCE).values()) == {1}
    for group, size in ((0, WIDE), (1, HIGH)):
        members = [i for i, g in enumerate(GROUPS) if g == group]
        keys = [key for key in SEQUENCE if GROUPS[key.sample] == group]
        # The group's own sequence is not shuffled by the batch: passes come one after another.
        numbers = Counter(key.epoch for key in keys)
        whole = [epoch for epoch, count in numbers.items() if count == size]
        assert len(whole) >= len(numbers) - 2  # the last ones are cut off
        for epoch in whole:
            assert sorted(key.sample for key in keys if key.epoch == epoch) == members


def test_groups_stay_within_a_batch_of_their_share():
    """After e epochs each group has had its samples e times, but for less than a batch."""
    total = WIDE + HIGH
    for epochs in range(1, len(SEQUENCE) // total):
        seen = Counter(GROUPS[key.sample] for key in SEQUENCE[: epochs * total])
        for group, size in ((0, WIDE), (1, HIGH)):
            assert abs(seen[group] - epochs * size) < 2 * BATCH  # and the epoch ends in a batch


def test_groups_come_in_random_order():
    kinds = [GROUPS[SEQUENCE[i].sample] for i in range(0, len(SEQUENCE), BATCH)]
    gaps = np.diff(np.flatnonzero(kinds))
    assert len(set(gaps.tolist())) > 2


def test_positions_may_be_asked_in_any_order():
    order = make()
    positions = np.random.default_rng(1).permutation(len(SEQUENCE)).tolist()
    assert [order[p] for p in positions] == [SEQUENCE[p] for p in positions]


def test_seeds_and_passes_differ():
    assert [make(seed=4)[p].sample for p in range(40)] != [key.sample for key in SEQUENCE[:40]]
    high = [key for key in SEQUENCE if GROUPS[key.sample] == 1]
    first, second = ([k.sample for k in high if k.epoch == epoch] for epoch in range(2))
    assert first != second


@pytest.mark.parametrize(("world_size", "per_device"), [(1, 2), (2, None), (2, 1), (4, None)])
def test_ranks_and_accumulation_change_nothing(world_size, per_device):
    plan = plan_batches(BATCH, world_size, per_device)
    ranks = [TrainBatches(make(), plan, rank=r, steps=STEPS) for r in range(world_size)]
    joined = [key for parts in zip(*ranks, strict=True) for part in parts for key in part]
    assert joined == SEQUENCE


def test_a_group_smaller_than_a_batch_is_not_grouped():
    groups = [0] * 20 + [1] * 3
    order = make(groups=groups)
    assert order.is_mixed
    keys = [order[p] for p in range(5 * 23)]
    for epoch in range(4):
        assert sorted(k.sample for k in keys if k.epoch == epoch) == list(range(23))
    assert len({k.sample for k in keys[:BATCH]}) == BATCH


def test_one_group_has_each_sample_once_an_epoch():
    order, plain = make(groups=[7] * 22), SampleOrder(22, seed=3)
    assert order.num_samples == plain.num_samples
    keys = [order[p] for p in range(66)]
    counts = Counter(key.epoch for key in keys)
    assert counts[0] == counts[1] == 22
    assert set(Counter(keys).values()) == {1}


def test_the_real_proportions_of_coco():
    """117,266 training images, some 26 % high: random access far into a run is right at once."""
    groups = (np.arange(117266) % 4 == 0).astype(int).tolist()
    order = make(groups=groups, batch=16)
    start = 16 * 7000 * 30
    keys = [order[p] for p in range(start, start + 160)]
    for i in range(0, 160, 16):
        assert len({groups[k.sample] for k in keys[i : i + 16]}) == 1
    assert {key.epoch for key in keys} <= {27, 28, 29}
