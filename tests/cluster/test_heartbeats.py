import os
import signal
import subprocess
import sys
import time

import pytest

from gmf_platform.cluster.heartbeats import (
    ALARMED,
    LOST,
    Heartbeat,
    State,
    describe,
    look,
    own_address,
    stacks,
)


def beat(rank, *, place="step 3, forward", passed=5, beats=1, ended="", **where):
    number, host, namespace = own_address()
    address = {"process": number, "host": host, "namespace": namespace} | where
    return Heartbeat(rank, **address, beats=beats, passed=passed, place=place, since=2.0,
                     ended=ended)  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def put(one):
        descriptor = os.open(tmp_path / f"rank-{one.rank}", os.O_RDWR | os.O_CREAT)
        one.write(descriptor)
        os.close(descriptor)

    return put


def never(state):
    return False


def test_round_trip(write, tmp_path):
    write(beat(3, place="a place with a long name " * 10))
    write(beat(3, place="here"))  # shorter than the one before
    assert Heartbeat.read(tmp_path, 3) == beat(3, place="here")
    assert Heartbeat.read(tmp_path, 4) is None
    (tmp_path / "rank-3").write_bytes(b"{half")
    assert Heartbeat.read(tmp_path, 3) is None


def test_processes_of_this_machine(write, tmp_path):
    """One that runs, one that is gone, and one that nobody has buried yet."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    unburied = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, unburied.pid, os.WEXITED | os.WNOWAIT)
    for rank, process in enumerate((os.getpid(), gone.pid, unburied.pid)):
        write(beat(rank, process=process))
    states = look(tmp_path, 4, seconds=0, until=never)
    assert [state.is_dead for state in states.values()] == [False, True, True]
    assert sorted(states) == [0, 1, 2]
    unburied.wait()


def test_processes_of_other_machines(write, tmp_path):
    """Whether their beats go on is all that is known of them."""
    for rank in (0, 1):
        write(beat(rank, host="elsewhere", process=1))
    begun = time.monotonic()

    def go_on(state):
        write(beat(0, host="elsewhere", process=1, beats=2))
        return False

    states = look(tmp_path, 2, seconds=0.3, until=go_on)
    assert time.monotonic() - begun >= 0.3
    assert [states[rank].is_dead for rank in (0, 1)] == [False, True]


def test_one_that_has_left_is_not_waited_for(write, tmp_path):
    write(beat(0, host="elsewhere"))
    write(beat(1, host="elsewhere", ended="ValueError: no"))
    begun = time.monotonic()
    states = look(tmp_path, 2, seconds=60, until=lambda state: state.is_to_blame)
    assert time.monotonic() - begun < 30
    assert describe(states) == (
        f"rank 1 (process {os.getpid()} on elsewhere) left with ValueError: no; it was at: "
        "step 3, forward"
    )


def test_who_is_to_blame():
    assert State(beat(0), is_dead=True).is_to_blame
    assert not State(beat(0), is_dead=False).is_to_blame
    assert State(beat(0, ended="KeyError: 1"), is_dead=False).is_to_blame
    assert not State(beat(0, ended=LOST), is_dead=True).is_to_blame
    assert not State(beat(0, ended=ALARMED), is_dead=True).is_to_blame


def test_behind():
    states = {
        0: State(beat(0, passed=7, ended=ALARMED), is_dead=True),
        1: State(beat(1, passed=6, place="waiting for a batch"), is_dead=False),
        2: State(beat(2, passed=7), is_dead=False),
    }
    (line,) = describe(states).splitlines()
    assert line.startswith("rank 1 (process ")
    assert line.endswith("is behind, for 2 s, at: waiting for a batch")
    states[1] = State(beat(1, passed=7), is_dead=False)
    assert len(describe(states).splitlines()) == 3  # nobody: all are told
    assert "behind" not in describe(states)


def test_stacks_are_told_once(tmp_path):
    for rank, text in enumerate(("wait", "sleep", "wait")):
        (tmp_path / f"stack-{rank}").write_text(text)
    states = {rank: State(beat(rank, passed=6 - (rank == 1)), is_dead=False) for rank in range(4)}
    assert stacks(tmp_path, states) == "rank 1 in\nsleep\nrank 0, 2 in\nwait"


SUSPENDED = """
import sys, time
from pathlib import Path
from gmf_platform.cluster.watchdog import WatchThread

thread = WatchThread(Path(sys.argv[1]), rank=0, world_size=1, timeout=2, log=Path(sys.argv[2]))
thread.start()
print("begun", flush=True)
time.sleep(float(sys.argv[3]))
"""


@pytest.mark.parametrize(("seconds", "code"), [("1", 0), ("60", 1)])
def test_a_process_that_was_suspended_has_not_hung(tmp_path, seconds, code):
    words = [sys.executable, "-c", SUSPENDED, tmp_path, tmp_path / "log.txt", seconds]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, env=environment)
    assert process.stdout.readline() == b"begun\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(4)
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=60)
    assert process.returncode == code
