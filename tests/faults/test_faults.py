"""Each fault ends in the same curve as a run that nothing happens to, or in a clear error.

A run is harmed, what was harmed is mended, and the same command is given again: it goes on from
where it must, and comes to the undisturbed run's curve and weights, value by value.
"""

import re
from dataclasses import dataclass
from typing import Literal

import pytest


@dataclass(frozen=True)
class Fault:
    """A harm, and what must come of it.

    Attributes:
        name: what the table calls it.
        harm: see saboteur.py.
        codes: exit codes of the ranks; None for one that is killed or leaves at once.
        says: what is said of it, a regular expression.
        goes_on_at: the step that the run must go on from after it; 0: it begins anew; None: it
            is of no interest.
        under: strategy; two processes, one with ``one``.
        words: more of the command line.
        disk: what the folder of the runs is on.
    """

    name: str
    harm: str
    codes: tuple
    says: str
    goes_on_at: int | None
    under: Literal["one", "ddp", "fsdp", "zero2"] = "ddp"
    words: tuple = ()
    disk: Literal["plain", "small", "mounted"] = "plain"

    def __str__(self):
        return re.sub(r"\W+", "-", self.name)


DEAD = r"rank {} \(process \d+ on \S+\) is dead; it was last at: {}"
FULL = r"error: \S*{} cannot be written: No space left on device; make room there"
READ_ONLY = r"error: \S*{} cannot be written: Read-only file system; have it mounted for writing"
WORKERS = ("--data.num_workers", "1")
SOON = ("--watchdog.timeout_minutes", "0.3")
SILENT = r"model        SegmentationTask"  # who is killed says nothing of it


def stopped(signal, step):
    return f"{signal}: saved at step {step}; the same command goes on from there"


FAULTS = [
    Fault("kill -9 of one rank in training", "kill 1 training 7", (1, None), DEAD.format(1, "waiting for a batch"), 5),
    Fault("kill -9 of one rank in validation", "kill 1 validation 10", (1, None), DEAD.format(1, "validation"), 10),
    Fault("kill -9 of one rank in saving", "kill 1 saving 8", (1, None), DEAD.format(1, "waiting"), 8),
    Fault("kill -9 of the rank that writes", "kill 0 writing 8", (None, 1), DEAD.format(0, "saving"), 5),
    Fault("kill -9 of all before anything is saved", "kill 0,1 training 2", (None, None), SILENT, 0),
    Fault("kill -9 of all in training", "kill 0,1 training 7", (None, None), SILENT, 5),
    Fault("kill -9 of all in validation", "kill 0,1 validation 12", (None, None), SILENT, None),
    Fault("kill -9 of all in saving", "kill 0,1 saving 8;kill 0 writing 8", (None, None), SILENT, 5),
    Fault("kill -9 of one rank that writes, shards of FSDP", "kill 1 writing 8", (1, None), DEAD.format(1, "saving"), 5, under="fsdp"),
    Fault("kill -9 of all that write, shards of FSDP", "kill 0,1 writing 8", (None, None), SILENT, 5, under="fsdp"),
    Fault("kill -9 of one rank that writes, shards of ZeRO-2", "kill 0 writing 8", (None, 1), DEAD.format(0, "saving"), 5, under="zero2"),
    Fault("SIGTERM to one rank in training", "SIGTERM 1 training 7", (75, 75), stopped("SIGTERM", 8), 8),
    Fault("SIGUSR1 to one rank in validation", "SIGUSR1 0 validation 10", (75, 75), stopped("SIGUSR1", 10), 10),
    Fault("SIGINT to all", "SIGINT 0,1 training 7", (75, 75), stopped("SIGINT", 8), 8),
    Fault("SIGTERM to one rank in saving", "SIGTERM 1 saving 8", (75, 75), stopped("SIGTERM", 9), 9),
    Fault("SIGTERM, and SIGUSR1 while it saves", "SIGTERM 1 training 7;SIGUSR1 0,1 saving 8", (75, 75), stopped("SIGTERM", 8), 8),
    Fault("SIGINT twice, to all", "SIGINT 0,1 training 7;SIGINT 0,1 training 7", (1, 1), SILENT, 5),
    Fault("the disk is full", "fill 0 training 7", (2, 1), FULL.format(""), 8, disk="small"),
    Fault("too little disk for a checkpoint", "nearly_fill 0 training 7", (2, 1), FULL.format("last.ckpt"), 8, disk="small"),
    Fault("too little disk for shards of FSDP", "nearly_fill 0 training 7", (2, 2), FULL.format(""), 8, under="fsdp", disk="small"),
    Fault("too little disk for shards of ZeRO-2", "nearly_fill 0 training 7", (2, 2), FULL.format(""), 8, under="zero2", disk="small"),
    Fault("run folder read-only while training", "make_read_only 0 training 7", (2, 1), READ_ONLY.format(""), 5, disk="mounted"),
    Fault("data file removed", "remove_file 0 training 4", (1, 2), r"error: \S+\.jpg: there is no such file", 5),
    Fault("data file truncated", "truncate_file 0 training 4", (1, 2), r"error: \S+\.jpg: is cut off", 5),
    Fault("data file replaced by a web page", "replace_file 0 training 4", (1, 2), r"error: \S+\.jpg: is not an image: it starts with b'<html>", 5),
    Fault("data file removed, with loader workers", "remove_file 0 training 4", (1, 2), r"error: \S+\.jpg: there is no such file", None, words=WORKERS),
    Fault("loader worker killed", "kill_worker 1 training 7", (1, 2), r"error: a process that loads data has died \(DataLoader worker", 5, words=WORKERS),
    Fault("NaN in one rank's batch", "nan 1 training 7", (4, 4), r"step 8 of 12: the loss is not finite", 5),
    Fault("a rank sleeps past the timeout", "sleep 1 training 7", (None, None), r"rank 1 \(.*\) is behind, for \d+ s", 5, words=SOON),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_fault(fault, run, disk, mend, undisturbed, record_fault, monkeypatch):
    harmed_run = run(fault.under, *fault.words)
    disk(fault.disk)
    monkeypatch.setenv("HARM", fault.harm)
    life = harmed_run.start()
    assert life.codes == fault.codes, life.said
    assert re.search(fault.says, life.said), life.said
    assert "Logging error" not in life.said

    mend()
    resumed = harmed_run.start()
    assert set(resumed.codes) == {0}, resumed.said
    went_on_at = re.findall(r"going on at step (\d+) of 12", resumed.said)
    if fault.goes_on_at is not None:
        assert set(went_on_at) == ({str(fault.goes_on_at)} if fault.goes_on_at else set())
    record_fault(fault.name, **harmed_run.seconds(life, resumed))
    harmed_run.outcome().assert_is(undisturbed(fault.under))
