"""What all tests share: small real data, a drawn sample, several processes."""

import multiprocessing
import os
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from datamodules.sample_data import write_sample

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else it asks the network when imported
# Threads that wait for each other spin: beside other tests two are ten times slower than one.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data():
    """Find a small real data set by its folder's name under GMF_DATA, or skip the test."""

    def find(name):
        home = os.environ.get("GMF_DATA")
        if home is None:
            pytest.skip(f"needs {name}: set GMF_DATA to the folder above it")
        if not Path(home, name).is_dir():
            pytest.skip(f"needs {name}, which is not under GMF_DATA={home}")
        return Path(home, name)

    return find


@pytest.fixture(scope="session")
def sample_ade20k(tmp_path_factory):
    """A drawn set in ADE20K's layout, 12 and 6 images of 96 x 96; not to be written to."""
    root = tmp_path_factory.mktemp("sample") / "ade20k"
    write_sample("ade20k", root, train=12, val=6, size=96, seed=0)
    return root


@pytest.fixture
def run_processes(tmp_path_factory):
    """Call ``fn(rank)`` in forked processes that gloo connects; gives the results by rank."""

    def run(fn, world_size):
        folder = tmp_path_factory.mktemp("processes")
        context = multiprocessing.get_context("fork")
        arguments = [(fn, rank, world_size, folder) for rank in range(world_size)]
        processes = [context.Process(target=_rank_main, args=args) for args in arguments]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout=60)
            if process.is_alive():
                process.kill()
                process.join()
        assert [process.exitcode for process in processes] == [0] * world_size
        return [pickle.loads((folder / str(rank)).read_bytes()) for rank in range(world_size)]

    return run


def _rank_main(fn, rank, world_size, folder):
    torch.set_num_threads(1)  # the parent's thread pool does not survive the fork
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    (folder / str(rank)).write_bytes(pickle.dumps(fn(rank)))
    dist.barrier()
    dist.destroy_process_group()
