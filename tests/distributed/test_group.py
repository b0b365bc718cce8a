"""Attempts that share a store, as those of torchrun do."""

import multiprocessing
import os
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from gmf_platform.distributed.group import agree_on_attempt, join_group


@pytest.fixture
def store():
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture
def attempt(store, tmp_path):
    """Sum the ranks in a group; ``attempt(1, delays=(2, 0))`` makes rank 0 come late."""

    def run(number, delays):
        context = multiprocessing.get_context("fork")
        world_size = len(delays)
        processes = [
            context.Process(
                target=member,
                args=(rank, world_size, store.port, delay, tmp_path / f"{number}-{rank}"),
            )
            for rank, delay in enumerate(delays)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
            process.kill()
        files = [tmp_path / f"{number}-{rank}" for rank in range(world_size)]
        return [file.read_text() if file.exists() else None for file in files]

    return run


def member(rank, world_size, port, delay, result):
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    time.sleep(delay)
    join_ours()
    total = torch.tensor(rank)
    dist.all_reduce(total)
    result.write_text(str(int(total)))
    os._exit(1)  # as a process that fails: nothing is taken back from the store


def join_ours():
    join_group("gloo", device=torch.device("cpu"), timeout=timedelta(seconds=30))


def test_a_later_attempt_finds_itself(attempt):
    """Whoever comes first."""
    for number, delays in enumerate([(0, 0), (1, 0), (0, 1), (0.5, 0)]):
        assert attempt(number, delays) == ["1", "1"]
    assert attempt("more", (0.5, 0, 1)) == ["3", "3", "3"]


def test_a_rank_that_does_not_come_is_named(store):
    with pytest.raises(RuntimeError, match=r"rank 1, 2 has not come within 0:00:00\.2"):
        agree_on_attempt(store, rank=0, world_size=3, timeout=timedelta(seconds=0.2))


def test_other_starts_are_left_alone(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    join_ours()
    assert not dist.is_initialized()
