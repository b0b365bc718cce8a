"""A job that Slurm starts again and again: what it keeps, and when it gives up."""

import json

import pytest
import yaml

STOPPER = """
import os
import signal

from lightning.pytorch import Callback


class Stopper(Callback):
    def on_fit_start(self, trainer, module):
        if os.environ["STOP"] == "True":
            os.kill(os.getpid(), signal.SIGUSR1)
"""


@pytest.fixture
def start(base, gmf, modules, monkeypatch, tmp_path):
    """A start of a job, which a signal stops before its first step, or not."""
    modules("early", STOPPER)
    content = {
        "trainer": {"callbacks": [{"class_path": "early.Stopper"}]},
        "checkpoint": {"max_idle_restarts": 2},
    }
    (tmp_path / "early.yaml").write_text(yaml.safe_dump(content))

    def fit(number, *words, job="7", stop=True):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(number))
        monkeypatch.setenv("STOP", str(stop))
        return gmf("fit", *base, "--config", "early.yaml", "--name", "idle", *words)

    return fit


def test_no_step_in_two_restarts(start, tmp_path):
    for number in (0, 1):
        stopped = start(number)
        assert stopped.code == 75
        assert "SIGUSR1: before the first step" in stopped.out
    ended = start(2)
    assert ended.code == 1
    assert "job 7 was restarted 2 times without a step gained, and is at step 0" in ended.out
    starts = (tmp_path / "runs" / "idle" / "starts.jsonl").read_text().splitlines()
    assert [json.loads(line)["number"] for line in starts] == [0, 1, 2]

    assert start(0, job="8").code == 75  # submitted anew by a person


def test_steps_gained_count(start):
    assert start(0).code == 75
    assert start(1, "--trainer.max_steps", "2", stop=False).code == 0
    assert start(2, "--trainer.max_steps", "3").code == 75
    assert start(3, "--trainer.max_steps", "3").code == 75
    assert start(4, "--trainer.max_steps", "3").code == 1


def test_fresh_once(start, tmp_path):
    """A job with --fresh begins anew when it is submitted, not whenever it is requeued."""
    words = ("--trainer.max_steps", "2")
    assert start(0, *words, stop=False).code == 0
    again = start(0, *words, "--fresh", job="8")
    assert again.code == 75
    requeued = start(1, *words, "--fresh", job="8", stop=False)
    assert requeued.code == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2  # one was set aside, once
