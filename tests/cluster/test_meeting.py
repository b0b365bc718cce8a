import socket
import time

import pytest
import torch

from gmf_platform.cluster import meeting
from gmf_platform.cluster.meeting import Absent, Meeting, Place, all_reduce_speed, own_place


@pytest.fixture
def address(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    for name in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, Place(0, 1, 0, "by hand")),
        (
            {"TORCHELASTIC_RUN_ID": "a", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"},
            Place(5, 8, 1, "by torchrun"),
        ),
        (
            {
                "SLURM_STEP_ID": "0",
                "SLURM_STEP_NUM_TASKS": "8",
                "SLURM_PROCID": "5",
                "SLURM_LOCALID": "1",
            },
            Place(5, 8, 1, "by srun"),
        ),
        # srun --pty, and the shell of salloc.
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, Place()),
        ({"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "8"}, Place()),
    ],
)
def test_place(monkeypatch, variables, place):
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert own_place() == place


def test_all_say_and_hear_all(address, run_processes):
    def talk(rank):
        together = Meeting(Place(rank, 3, rank), seconds=60)
        first = together.gather("numbers", {"own": rank})
        time.sleep(0.3 * rank)
        second = together.gather("names", f"rank {rank}")
        together.leave()
        return first, second

    said = [{"own": 0}, {"own": 1}, {"own": 2}], ["rank 0", "rank 1", "rank 2"]
    assert run_processes(talk, 3) == [said] * 3


def test_alone():
    alone = Meeting(Place(), seconds=1)
    assert alone.gather("numbers", 7) == [7]
    alone.leave()


def test_who_does_not_come_is_named(address, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node[1-2]")
    first = Meeting(Place(0, 4), seconds=1)
    with pytest.raises(Absent, match=r"rank 1, 2, 3 of 4 has not come within 1 s.*node\[1-2\]"):
        first.gather("facts", None)


def test_the_first_does_not_come(address):
    with pytest.raises(Absent, match=r"rank 0 cannot be reached at 127.0.0.1:\d+ within 1 s by ra"):
        Meeting(Place(3, 4), seconds=1)


def test_who_dies_in_between_is_named(address, run_processes):
    def talk(rank):
        together = Meeting(Place(rank, 2, rank), seconds=20 if rank else 3)
        together.gather("numbers", rank)
        if rank:
            return ""
        with pytest.raises(Absent) as raised:
            together.gather("names", rank)
        return str(raised.value)

    assert "rank 1 of 2 has not come within 3 s" in run_processes(talk, 2)[0]


@pytest.mark.parametrize("most", [4, 3 << 20])
def test_all_reduce(address, monkeypatch, most):
    """In processes of their own, since a group can be made only once."""
    import multiprocessing

    def talk(rank, results):
        torch.set_num_threads(1)
        together = Meeting(Place(rank, 2, rank), seconds=60)
        cpu = torch.device("cpu")
        size, seconds = all_reduce_speed(together, "gloo", device=cpu, most_bytes=most)
        results.put((size, seconds))
        together.leave()

    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=talk, args=(rank, results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=100) for _ in processes]
    for process in processes:
        process.join(timeout=200)
    assert [size for size, _ in found] == [most, most]
    assert all(0 < seconds < 30 for _, seconds in found)


def test_a_wrong_sum_is_found(monkeypatch):
    monkeypatch.setattr(meeting.dist, "all_reduce", lambda tensor: None)
    with pytest.raises(Exception, match=r"1 \+ \.\.\. \+ 2 over all processes gave 1"):
        meeting._check_sum(Place(0, 2), torch.device("cpu"))
