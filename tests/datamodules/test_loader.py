"""Loaders: exact resuming, and a worker's errors as the user should see them."""

import multiprocessing
import signal
import subprocess
from itertools import islice

import pytest
import torch
from torch.utils.data import Dataset

from datamodules import ADE20K
from datamodules.images import DataError
from datamodules.loader import Loader, TrainLoader
from gmf_platform.distributed.order import EvalBatches, SampleOrder, TrainBatches, plan_batches
from gmf_platform.errors import UserError

STEPS = 6  # of 4 samples, from 12: two epochs


@pytest.fixture
def make_loader(sample_ade20k):
    def make(workers=0, per_device=None, **position):
        data = ADE20K(
            str(sample_ade20k),
            crop_size=64,
            scale=(256, 64),
            global_batch_size=4,
            per_device_batch_size=per_device,
            num_workers=workers,
            seed=5,
        )
        data.setup("fit")
        return data.train_loader(steps=STEPS, **position)

    return make


def same(batches, others):
    pairs = list(zip(batches, others, strict=True))
    assert all(a["ids"] == b["ids"] for a, b in pairs)
    assert all(torch.equal(a[key], b[key]) for a, b in pairs for key in ("images", "masks"))
    return len(pairs)


@pytest.fixture
def whole_run(make_loader):
    return list(make_loader())


def test_epochs_differ_in_order_and_pixels(whole_run):
    halves = whole_run[:3], whole_run[3:]
    ids = [[name for batch in half for name in batch["ids"]] for half in halves]
    assert ids[0] != ids[1]
    assert sorted(ids[0]) == sorted(ids[1])
    images = [torch.cat([batch["images"] for batch in half]) for half in halves]
    sorted_images = (
        x[sorted(range(12), key=order.__getitem__)] for x, order in zip(images, ids, strict=True)
    )
    first, second = sorted_images
    assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 2), (2, 0)])
@pytest.mark.parametrize("done", [2, 4])
def test_goes_on_exactly(make_loader, whole_run, before, after, done):
    stopped = make_loader(before)
    assert same(islice(stopped, done), whole_run[:done]) == done
    state = stopped.state_dict()
    stopped.close()
    assert state == {"samples_consumed": 4 * done, "num_samples": 12}
    resumed = make_loader(after)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state  # a save before the first batch loses nothing
    assert same(resumed, whole_run[done:]) == STEPS - done
    resumed.close()
    assert resumed.state_dict()["samples_consumed"] == 4 * STEPS


def test_goes_on_with_other_processes_and_accumulation(make_loader, whole_run):
    stopped = make_loader()
    list(islice(stopped, 2))
    ranks = [make_loader(per_device=1, rank=rank, world_size=2) for rank in range(2)]
    for rank in ranks:
        rank.load_state_dict(stopped.state_dict())
    names = [name for parts in zip(*ranks, strict=True) for part in parts for name in part["ids"]]
    assert names == [name for batch in whole_run[2:] for name in batch["ids"]]
    assert ranks[0].state_dict() == ranks[1].state_dict()


def test_length_is_the_whole_run_also_after_a_resume(make_loader):
    loader = make_loader(per_device=2)
    assert len(loader) == 2 * STEPS
    loader.load_state_dict({"samples_consumed": 8, "num_samples": 12})
    assert len(loader) == 2 * STEPS
    assert len(list(loader)) == 2 * STEPS - 4


def test_changed_data_is_refused(make_loader):
    with pytest.raises(UserError, match="began with 11 training samples, now there are 12") as said:
        make_loader().load_state_dict({"samples_consumed": 4, "num_samples": 11})
    assert "--fresh" in str(said.value)


class Numbers(Dataset):
    """Samples are their keys; one of them is broken."""

    def __init__(self, broken=None, error=None):
        self.broken, self.error = broken, error

    def __getitem__(self, key):
        if key.sample == self.broken:
            raise self.error
        return tuple(key)


def train_loader(dataset, workers, size=8):
    batches = TrainBatches(SampleOrder(size, seed=0), plan_batches(2, 1, None), rank=0, steps=6)
    return TrainLoader(dataset, batches, collate=list, num_workers=workers, pin_memory=False)


def test_workers_ahead_are_not_counted():
    loader = train_loader(Numbers(), workers=2)
    batches = iter(loader)
    next(batches)
    assert loader.state_dict()["samples_consumed"] == 2
    expected = list(train_loader(Numbers(), workers=0))
    assert list(batches) == expected[1:]
    loader.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_user_error_comes_whole(workers):
    loader = train_loader(Numbers(5, DataError("photo.jpg: is cut off")), workers)
    with pytest.raises(DataError) as said:
        list(loader)
    assert str(said.value) == "photo.jpg: is cut off"


@pytest.mark.parametrize("workers", [0, 2])
def test_error_of_the_code_keeps_its_traceback(workers):
    loader = train_loader(Numbers(5, ZeroDivisionError("a bug")), workers)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(loader)


def test_evaluation_error_comes_whole():
    batches = EvalBatches([[0, 1], [2, 3]], rank=0, world_size=1)
    dataset = Numbers(3, DataError("mask.png: is empty"))
    loader = Loader(dataset, batches, collate=list, num_workers=1, pin_memory=False)
    with pytest.raises(DataError, match=r"^mask.png: is empty$"):
        list(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_image_deep_in_a_worker(make_folder, workers):
    root = make_folder()
    broken = root / "images" / "training" / "b.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    data = ADE20K(str(root), classes=["x", "y"], crop_size=32, global_batch_size=2)
    data.num_workers = workers
    with pytest.raises(DataError) as said:
        list(data.train_loader(steps=4))
    assert str(said.value).startswith(f"{broken}: is cut off")
    assert "Traceback" not in str(said.value)
    assert "worker" not in str(said.value)


def test_too_large_global_batch_is_refused(make_folder):
    root = make_folder()
    data = ADE20K(str(root), classes=["x", "y"], global_batch_size=4)
    with pytest.raises(UserError, match=r"global_batch_size 4 .* the 3 training samples .* to 3"):
        data.train_loader(steps=1)


def test_close_ends_the_workers_and_allows_another_pass():
    loader = train_loader(Numbers(), workers=2)
    before = set(multiprocessing.active_children())
    first = next(iter(loader))
    assert len(set(multiprocessing.active_children()) - before) == 2
    loader.close()
    assert not set(multiprocessing.active_children()) - before
    assert next(iter(loader)) == first
    loader.close()
    train_loader(Numbers(), workers=0).close()


@pytest.mark.parametrize("error", [DataError("x.jpg: is empty"), ZeroDivisionError("a bug")])
def test_an_error_ends_the_workers(error):
    before = set(multiprocessing.active_children())
    with pytest.raises(type(error)):
        list(train_loader(Numbers(5, error), workers=2))
    assert not set(multiprocessing.active_children()) - before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_workers_outlive_a_signal_to_the_whole_job(make_loader, whole_run, number):
    """The training process hears it too, and needs its batches up to the end of the step."""
    before = signal.signal(
        number, lambda *_: None
    )  # as in a run, which its workers are forked from
    try:
        loader = make_loader(workers=2)
        batches = iter(loader)
        seen = [next(batches)]  # of one worker; the other may be starting still
        workers = [str(worker.pid) for worker in multiprocessing.active_children()]
        subprocess.run(["kill", f"-{number:d}", *workers], check=True)  # not their parent's doing
        assert same([*seen, *batches], whole_run) == STEPS
    finally:
        signal.signal(number, before)


def test_workers_end_when_their_parent_ends_them(make_loader):
    loader = make_loader(workers=2)
    next(iter(loader))
    workers = multiprocessing.active_children()
    for worker in workers:
        worker.terminate()
        worker.join(timeout=100)
    assert [worker.exitcode for worker in workers] == [0, 0]
