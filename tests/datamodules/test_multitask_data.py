"""Joined data: each task with its own batch, order and epochs, and a position that can be resumed."""

import pytest

from datamodules import BaseDataModule
from datamodules.multitask import MultiTask
from gmf_platform.distributed.order import SampleOrder
from gmf_platform.distributed.turns import BySize, RoundRobin
from gmf_platform.errors import UserError


class Numbers(BaseDataModule):
    """Samples whose id is their number and epoch."""

    def __init__(self, size, **settings):
        super().__init__(".", num_workers=0, **settings)
        self.size = size

    @property
    def class_names(self):
        return ["even", "odd"]

    def dataset(self, split, *, training):
        size = self.size if training else self.size // 2

        class Set:
            def __len__(self):
                return size

            def __getitem__(self, key):
                return f"{key.epoch}:{key.sample}"

        return Set()

    def predict_dataset(self, paths):
        raise AssertionError

    def collate(self, samples, *, training):
        return {"ids": samples}


def joined(**settings):
    tasks = {
        "a": Numbers(10, global_batch_size=4, per_device_batch_size=1),
        "b": Numbers(7, global_batch_size=2, eval_batch_size=2),
    }
    return MultiTask(tasks, seed=5, **settings)


def steps_of(data, count, *, world_size=1, state=None, total=30):
    """Samples of each task in steps, of all ranks together, and the state after them."""
    loaders = [
        data.train_loader(steps=total, rank=r, world_size=world_size) for r in range(world_size)
    ]
    for loader in loaders if state else ():
        loader.load_state_dict(state)
    iterators = [iter(loader) for loader in loaders]
    steps = []
    for _ in range(count):
        batches = [next(iterator) for iterator in iterators]
        step = {}
        for batch in batches:
            for name, parts in batch["tasks"].items():
                step.setdefault(name, []).extend(i for part in parts for i in part["ids"])
        steps.append({name: sorted(ids) for name, ids in step.items()})
    return steps, loaders[0].state_dict()


def test_a_step_holds_all_tasks_in_their_own_batches():
    loader = joined().train_loader(steps=3)
    assert len(loader) == 3
    first = next(iter(loader))
    assert [len(part["ids"]) for part in first["tasks"]["a"]] == [1] * 4
    assert [len(part["ids"]) for part in first["tasks"]["b"]] == [2]
    assert first["ids"] == [f"a/{p['ids'][0]}" for p in first["tasks"]["a"]] + [
        f"b/{i}" for i in first["tasks"]["b"][0]["ids"]
    ]


@pytest.mark.parametrize("turns", [None, BySize(), RoundRobin()])
def test_each_task_is_its_own_endless_sequence(turns):
    steps, state = steps_of(joined(turns=turns), 12)
    for name, size, batch in (("a", 10, 4), ("b", 7, 2)):
        got = [ids for step in steps for ids in [step.get(name)] if ids]
        order = SampleOrder(size, seed=5)
        keys = [order[i] for i in range(batch * len(got))]
        expected = [
            sorted(f"{k.epoch}:{k.sample}" for k in keys[i : i + batch])
            for i in range(0, len(keys), batch)
        ]
        assert got == expected
        assert state["tasks"][name]["samples_consumed"] == len(keys)


@pytest.mark.parametrize("turns", [None, BySize(0.5)])
@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 2), (2, 1)])
def test_resumed_with_another_number_of_processes(turns, before, after):
    whole, _ = steps_of(joined(turns=turns), 15)
    first, state = steps_of(joined(turns=turns), 6, world_size=before)
    second, _ = steps_of(joined(turns=turns), 9, world_size=after, state=state)
    assert first + second == whole


def test_ranks_agree_on_whose_turn_it_is():
    loaders = [joined(turns=BySize()).train_loader(steps=20, rank=r, world_size=2) for r in (0, 1)]
    assert [[*x["tasks"]] for x in loaders[0]] == [[*x["tasks"]] for x in loaders[1]]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_sees_everything_once(world_size):
    data = joined()
    seen = {"a": [], "b": []}
    for rank in range(world_size):
        for batch in data.eval_loader("validation", rank=rank, world_size=world_size):
            for name, (part,) in batch["tasks"].items():
                seen[name] += part["ids"]
    assert {name: sorted(ids) for name, ids in seen.items()} == {
        "a": [f"0:{i}" for i in range(5)],
        "b": [f"0:{i}" for i in range(3)],
    }


def test_lengths():
    assert joined().steps_per_epoch() == 3.5  # of b: 7 by 2
    assert joined(turns=RoundRobin()).steps_per_epoch() == 7
    assert joined().global_batch_size == 6
    assert joined(turns=RoundRobin()).global_batch_size == 3
    assert joined().class_names == ["a/even", "a/odd", "b/even", "b/odd"]


def test_a_batch_that_ranks_cannot_share():
    with pytest.raises(UserError, match=r"data.tasks.a.global_batch_size 4 cannot be shared by 3"):
        joined().plan(3)


def test_what_a_task_is_refused_for_is_under_its_keys(monkeypatch):
    def refused(self, split, *, training):
        raise UserError("data.crop_size must be positive, not 0")

    monkeypatch.setattr(Numbers, "dataset", refused)
    for ask in (MultiTask.describe, lambda data: data.sizes):
        with pytest.raises(UserError, match=r"^data\.tasks\.a\.crop_size must be positive"):
            ask(joined())
    with pytest.raises(UserError, match=r"data\.num_workers: expected 0 or more, not -1"):
        joined(num_workers=-1).setup("fit")


def test_workers_are_shared():
    tasks = {
        "a": Numbers(10, global_batch_size=4),
        "b": Numbers(10, global_batch_size=4),
    }
    for data in tasks.values():
        data.num_workers_given = None
    MultiTask(tasks, num_workers=5)
    assert [data.num_workers for data in tasks.values()] == [3, 3]
