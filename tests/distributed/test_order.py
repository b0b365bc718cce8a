"""The order of samples against its definition, over ranks, accumulation and restarts."""

from collections import Counter
from itertools import islice

import pytest

from gmf_platform.distributed.order import (
    EvalBatches,
    SampleKey,
    SampleOrder,
    TrainBatches,
    plan_batches,
)
from gmf_platform.errors import UserError

SIZE, GLOBAL, STEPS = 22, 8, 12  # 22 is no multiple of 8: batches straddle epochs


def ranks(world_size, per_device=None, *, start_sample=0, seed=3, steps=STEPS):
    plan = plan_batches(GLOBAL, world_size, per_device)
    samplers = []
    for rank in range(world_size):
        batches = TrainBatches(SampleOrder(SIZE, seed=seed), plan, rank=rank, steps=steps)
        batches.start = start_sample // batches.samples_per_batch
        samplers.append(batches)
    return samplers


def global_sequence(samplers):
    """Samples in the order of the endless list: batch by batch, and in each by rank."""
    return [key for parts in zip(*samplers, strict=True) for part in parts for key in part]


REFERENCE = global_sequence(ranks(1))


def test_each_sample_once_an_epoch():
    by_epoch = Counter(REFERENCE)
    assert set(by_epoch.values()) == {1}
    whole = STEPS * GLOBAL // SIZE
    for epoch in range(whole):
        assert sorted(key.sample for key in REFERENCE if key.epoch == epoch) == list(range(SIZE))
    assert [key.epoch for key in REFERENCE] == [i // SIZE for i in range(STEPS * GLOBAL)]


def test_epochs_and_seeds_differ():
    first, second = ([key.sample for key in REFERENCE if key.epoch == epoch] for epoch in range(2))
    other = [key.sample for key in global_sequence(ranks(1, seed=4))[:SIZE]]
    assert first != second
    assert first != other
    assert first != list(range(SIZE))


def test_positions_may_be_asked_in_any_order():
    order = SampleOrder(SIZE, seed=3)
    backwards = [order[position] for position in reversed(range(len(REFERENCE)))]
    assert backwards[::-1] == REFERENCE


@pytest.mark.parametrize(
    ("world_size", "per_device"), [(1, 4), (1, 2), (2, None), (2, 2), (2, 1), (4, None), (4, 1)]
)
def test_ranks_and_accumulation_change_nothing(world_size, per_device):
    samplers = ranks(world_size, per_device)
    accumulate = GLOBAL // (world_size * (per_device or GLOBAL // world_size))
    assert all(len(list(s)) == len(s) == STEPS * accumulate for s in samplers)
    assert global_sequence(samplers) == REFERENCE


@pytest.mark.parametrize("before", [(1, None), (2, None), (4, 1)])
@pytest.mark.parametrize("after", [(1, 4), (2, 2), (4, None), (8, None)])
def test_restart_in_mid_epoch_with_another_world_size(before, after):
    stopped = ranks(*before)
    batches = 5 * len(stopped[0]) // STEPS  # five steps: 40 samples, within the second epoch
    done = global_sequence([list(islice(sampler, batches)) for sampler in stopped])
    consumed = batches * stopped[0].samples_per_batch
    assert consumed == len(done) == 40
    rest = global_sequence(ranks(*after, start_sample=consumed))
    assert done + rest == REFERENCE


def test_plan():
    plan = plan_batches(16, 2, 4)
    assert (plan.per_device, plan.accumulate, plan.world_size) == (4, 2, 2)
    assert plan_batches(16, 1, None).per_device == 16


def test_plan_that_does_not_share_names_both_neighbours():
    with pytest.raises(UserError, match=r"global_batch_size 16 .* 3 devices: set it to 15 or 18"):
        plan_batches(16, 3, None)
    with pytest.raises(UserError, match="set it to 8, or"):
        plan_batches(4, 8, None)


def test_plan_that_does_not_divide_names_divisors():
    with pytest.raises(UserError, match=r"per_device_batch_size 3 .* one of 1, 2, 4, 8 would"):
        plan_batches(16, 2, 3)
    with pytest.raises(UserError, match="one of 1, 2, 4, 8 would"):
        plan_batches(16, 2, 16)
    for size in (1, 2, 4, 8):
        assert plan_batches(16, 2, size).accumulate == 8 // size


@pytest.mark.parametrize(("global_size", "per_device"), [(0, None), (-8, None), (8, 0), (8, -2)])
def test_plan_of_nothing_is_refused(global_size, per_device):
    with pytest.raises(UserError, match="batch_size: expected 1 or more, not"):
        plan_batches(global_size, 1, per_device)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_deals_whole_batches_once(world_size):
    groups = [[0, 4], [1, 2], [3], [6, 5], [7]]
    dealt = [EvalBatches(groups, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [len(list(part)) for part in dealt] == [len(part) for part in dealt]
    batches = [[key.sample for key in batch] for part in dealt for batch in part]
    assert sorted(batches) == sorted(groups)
    assert all(key == SampleKey(0, key.sample) for part in dealt for batch in part for key in batch)
