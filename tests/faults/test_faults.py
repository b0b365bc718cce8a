"""Each fault ends in the same curve as a run that nothing happens to, or in a clear error.

A run is harmed, what was harmed is mended, and the same command is given again: it goes on from
where it must, and comes to the undisturbed run's curve and weights, value by value.
"""

import re
from dataclasses import dataclass

import pytest
from conftest import is_as

RUN_FOLDER_IS_FULL = r"error: .*No space left on device"


@dataclass(frozen=True)
class Fault:
    """A harm, and what must come of it.

    Attributes:
        name: what the table calls it.
        harm: for the saboteur, see there.
        codes: exit codes of the ranks; None for one that is killed or leaves at once.
        says: what is said of it, a regular expression.
        goes_on_at: the step that the run must go on from after it; 0: it begins anew.
        under: strategy.
        words: more of the command line.
        disk: what the folder of the runs is on.
    """

    name: str
    harm: str
    codes: tuple
    says: str
    goes_on_at: int
    under: str = "ddp"
    words: tuple = ()
    disk: str = "plain"

    def __str__(self):
        return re.sub(r"[^\w]+", "-", self.name)


IS_DEAD = r"rank 1 \(process \d+ on \S+\) is dead; it was last at: "
ALL_ALONE = r"^step \d+/12"  # the killed cannot say more than they had
STOPPED = "{}: saved at step {}; the same command goes on from there".format


def killed(ranks, place, step, at, *, under="ddp"):
    who = {"1": "one rank", "0": "the first rank", "0,1": "all ranks"}[ranks]
    codes = tuple(None if str(rank) in ranks else 1 for rank in range(2))
    says = {"1": IS_DEAD, "0": IS_DEAD.replace("1", "0", 1), "0,1": "run          runs/a"}[ranks]
    name = f"kill -9 of {who}, {place}, {under}"
    return Fault(name, f"kill {ranks} {place} {step}", codes, says, at, under=under)


KILLS = [
    killed("1", "training", 7, 5),
    killed("1", "validation", 10, 10),
    killed("1", "saving", 8, 5),
    killed("0", "writing", 8, 5),
    killed("0,1", "training", 2, 0),
    killed("0,1", "training", 7, 5),
    killed("0,1", "validation", 12, 12),
    killed("0,1", "saving", 8, 5),
    killed("1", "writing", 8, 5, under="fsdp"),
    killed("0,1", "writing", 8, 5, under="fsdp"),
    killed("0", "writing", 10, 8, under="zero2"),
]


@pytest.mark.parametrize("fault", KILLS, ids=str)
def test_kill(fault, job, undisturbed, mount, record_property):
    check(fault, job, undisturbed, mount, record_property)


def check(fault, job, undisturbed, mount, record_property):
    harmed_run = job(fault.under, *fault.words)
    harmed = harmed_run.start(fault.harm)
    assert tuple(harmed.codes) == fault.codes, harmed.said
    assert re.search(fault.says, harmed.said), harmed.said
    resumed = harmed_run.start()
    assert resumed.codes == [0] * harmed_run.processes, resumed.said
    if fault.goes_on_at:
        assert f"going on at step {fault.goes_on_at} of 12" in resumed.said
    else:
        assert "going on" not in resumed.said
    record_property("fault", {"fault": fault.name, **harmed_run.seconds(harmed, resumed)})
    is_as(harmed_run.outcome(), undisturbed(fault.under))
