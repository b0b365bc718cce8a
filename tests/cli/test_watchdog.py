"""A process of several that dies or hangs ends the others soon, with a message that names it."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import yaml

from gmf_platform.distributed import strategies

SHORT = 0.2
"""Minutes until what hangs is noticed."""

FAULTY = '''
"""Does harm where the environment says: DEED:RANK:HOOK:STEP."""

import os
import signal
import time

from lightning.pytorch import Callback


def fall_asleep():
    time.sleep(300)


DEEDS = {
    "sleep": fall_asleep,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "raise": lambda: {}["nothing"],
}


class Faulty(Callback):
    def act(self, hook, trainer):
        deed, _, place = os.environ.get("FAULT", "").partition(":")
        if place == f"{trainer.global_rank}:{hook}:{trainer.global_step}":
            DEEDS[deed]()

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.act("train", trainer)

    def on_before_backward(self, trainer, module, loss):
        self.act("backward", trainer)

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 1:
            self.act("validation", trainer)

    def on_save_checkpoint(self, trainer, module, checkpoint):
        self.act("saving", trainer)
'''


@pytest.fixture(scope="module")
def line(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("watchdog")
    (folder / "faulty.py").write_text(FAULTY)
    content = {
        "trainer": {"accelerator": "cpu", "callbacks": [{"class_path": "faulty.Faulty"}]},
    }
    (folder / "faulty.yaml").write_text(yaml.safe_dump(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("DS_ACCELERATOR", "cpu")
        yield ("fit", *base, "--config", folder / "faulty.yaml", "--name", "a")


@pytest.fixture
def run(call_processes, line, monkeypatch, tmp_path):
    """Run in processes, one of them faulty; returns their results, the log and the seconds.

    What dies is seen at once, so the limit for what hangs is long there: it must never be reached
    by saving alone, whose many small exchanges take seconds on a busy machine.
    """

    def fit(fault, *words, processes=2, minutes=1.0, timeout=120):
        monkeypatch.setenv("FAULT", fault)
        words = (*line, "--trainer.devices", processes, *words)
        words = (*words, "--watchdog.timeout_minutes", minutes)
        begun = time.monotonic()
        results = call_processes(processes, *words, cwd=tmp_path, timeout=timeout)
        seconds = time.monotonic() - begun
        return results, (tmp_path / "runs" / "a" / "log.txt").read_text(), seconds

    return fit


def under(name):
    if name.startswith("zero"):
        pytest.importorskip("deepspeed", reason="needs deepspeed: the extra of that name")
        strategies._prepare_import()
        return ("--config", f"strategy/deepspeed_{name}", "--trainer.strategy.autocast", "none")
    return ("--config", f"strategy/{name}", "--model.backbone.checkpointing", "false")


@pytest.mark.parametrize(
    ("place", "where"),
    [
        ("train:1", "waiting for a batch after step 1"),
        pytest.param("backward:4", "step 5, forward", marks=pytest.mark.slow),
        ("validation:3", "validation after step 3, batch 0"),
        pytest.param("saving:2", "waiting for a batch after step 2", marks=pytest.mark.slow),
    ],
)
def test_hangs(run, place, where):
    """The limit is 12 s; the rest of the time is that of starting and of a grace."""
    results, log, seconds = run(f"sleep:1:{place}", *under("ddp"), minutes=SHORT)
    assert results == [None, None]  # left at once, without a result
    assert seconds < 100
    assert re.search(r"watchdog: rank [01] has passed no boundary for \d+ s", log)
    assert re.search(rf"rank 1 \(process \d+ on \S+\) is behind, for \d+ s, at: {where}", log)
    assert "rank 0 (" not in log  # it is not to blame
    first, second = (log.index(f"rank {rank} in\n") for rank in (1, 0))
    assert "in fall_asleep" in log[first:second]
    assert log.count("most recent call first") >= 2  # all threads


def test_one_process_hangs(run):
    results, log, seconds = run("sleep:0:train:1", processes=1, minutes=SHORT)
    assert results == [None]
    assert seconds < 100
    assert "rank 0 has passed no boundary" in log
    assert "in fall_asleep" in log


KILLED = [
    ("train:1", "waiting for a batch after step 1"),
    ("validation:3", "validation after step 3, batch 0"),
]


@pytest.mark.parametrize(("place", "where"), KILLED)
@pytest.mark.parametrize(
    "name", ["ddp", *(pytest.param(n, marks=pytest.mark.slow) for n in ("fsdp", "zero2", "zero3"))]
)
def test_dies(name, place, where, run):
    (first, second), log, seconds = run(f"kill:1:{place}", *under(name))
    assert second is None
    assert first.code == 1
    assert seconds < 100
    for text in (first.err, log):
        assert re.search(rf"rank 1 \(process \d+ on \S+\) is dead; it was last at: {where}", text)


def test_the_first_process_dies(run):
    (first, second), log, _ = run("kill:0:train:1", *under("ddp"))
    assert first is None
    assert second.code == 1
    assert "rank 0 (" in log
    assert "is dead; it was last at: waiting for a batch after step 1" in log


def test_raises(run):
    (first, second), log, _ = run("raise:1:train:1", *under("ddp"))
    assert (first.code, second.code) == (1, 1)
    assert "KeyError" in second.err
    assert "KeyError" not in first.err.partition("noticed by")[2]
    assert "left with KeyError: 'nothing'; it was at: waiting for a batch after step 1" in log


@pytest.mark.slow
def test_is_stopped_from_outside(run):
    """It lives, but cannot say where it is."""
    results, log, _ = run("stop:1:train:1", *under("ddp"), minutes=SHORT, timeout=60)
    assert results == [None, None]
    assert re.search(r"rank 1 \(.*\) is behind, for \d+ s, at: waiting for a batch", log)
    assert "rank 0 in\n" in log


def ends(group, *, seconds):
    """Whether no process of a group is left, soon."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.2)
    return False


@pytest.mark.slow
def test_processes_that_lightning_has_started(line, tmp_path):
    """None is left over."""
    words = (*line, "--trainer.devices", "2", "--trainer.strategy", "ddp")
    words = (*words, "--watchdog.timeout_minutes", SHORT)
    process = subprocess.Popen(
        [str(word) for word in (sys.executable, "-m", "gmf_platform", *words)],
        cwd=tmp_path,
        env=os.environ | {"FAULT": "sleep:1:train:3", "OMP_NUM_THREADS": "1",
                          "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        out, _ = process.communicate(timeout=300)
        assert process.returncode in (1, -signal.SIGKILL), out
        assert "rank 1 (" in out
        assert "has passed no boundary for" in out
        assert ends(process.pid, seconds=20)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_leaves_nothing_behind(trained):
    assert not (trained.path / "heartbeats").exists()


def test_off_and_wrong(gmf, line):
    result = gmf(*line, "--watchdog.timeout_minutes", "-1")
    assert result.code == 2
    assert "watchdog.timeout_minutes: expected float (0 or more), not -1" in result.err
    assert gmf(*line, "--watchdog.timeout_minutes", "0").code == 0
