"""A run that was stopped, however it was, and resumed is the run that was never stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
import yaml

STOPPER = '''
"""Stops its own process at a place that the environment names, as HOOK:STEP:BATCH:SIGNAL."""

import os
import signal

from lightning.pytorch import Callback


class Stopper(Callback):
    def stop(self, here, trainer, batch=0):
        place, _, name = os.environ.get("STOP_AT", "").rpartition(":")
        if place == f"{here}:{trainer.global_step}:{batch}":
            os.kill(os.getpid(), getattr(signal, name))

    def on_sanity_check_start(self, trainer, module):
        self.stop("sanity", trainer)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.stop("train", trainer, batch_idx)

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        self.stop("validation", trainer, batch_idx)
'''
STEPS = 12
VALIDATIONS = [4, 9, 11]  # TensorBoard's numbers of steps 5, 10 and 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the runs of this file are: drop-path and dropout on, saved each 4th step."""
    folder = tmp_path_factory.mktemp("resume")
    (folder / "stopper.py").write_text(STOPPER)
    content = {
        "trainer": {
            "max_steps": STEPS,
            "val_check_interval": 5,
            "callbacks": [{"class_path": "stopper.Stopper"}],
        },
        "checkpoint": {"every_n_steps": 4},
        "pictures": {"count": 1},
    }
    (folder / "long.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.fixture
def run(folder, base, gmf, monkeypatch):
    """Run ``fit`` in this process: ``run("name", *words, stop="train:7:SIGTERM")``."""
    monkeypatch.syspath_prepend(folder)

    def fit(name, *words, stop=""):
        monkeypatch.setenv("STOP_AT", stop)
        result = gmf("fit", *base, "--config", "long.yaml", "--name", name, *words, cwd=folder)
        time.sleep(1)  # event files are ordered by the second they were begun in
        return result

    return fit


@pytest.fixture
def start(folder, base):
    """Start ``fit`` in a process of its own."""
    processes = []

    def fit(name, *words, stop=""):
        argv = [sys.executable, "-m", "gmf_platform", "fit", *base, "--config", "long.yaml"]
        process = subprocess.Popen(
            [str(word) for word in (*argv, "--name", name, *words)],
            cwd=folder,
            env=os.environ | {"STOP_AT": stop, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield fit
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def outcome(folder, scalars):
    """All that a run came to which does not depend on the clock."""

    def read(name):
        path = folder / "runs" / name
        curves = scalars(path)
        weights = {
            kind: torch.load(path / "checkpoints" / f"{kind}.ckpt", weights_only=True)
            for kind in ("last", "best")
        }
        score = json.loads((path / "metrics.jsonl").read_text().splitlines()[-1])
        return SimpleNamespace(
            curves={
                tag: curves[tag] for tag in curves if tag.startswith(("train/", "val/", "lr/"))
            },
            weights={kind: content["state_dict"] for kind, content in weights.items()},
            averages={
                kind: content["average"]["state_dict"]
                for kind, content in weights.items()
                if "average" in content
            },
            score={k: v for k, v in score.items() if k in ("step", "val/miou", "best_step")},
        )

    return read


@pytest.fixture
def whole(run, outcome, folder):
    """The run that is never stopped."""
    if not (folder / "runs" / "whole").exists():
        assert run("whole").code == 0
    found = outcome("whole")
    assert [step for step, _ in found.curves["train/loss"]] == list(range(STEPS))
    assert [step for step, _ in found.curves["val/miou"]] == VALIDATIONS
    return found


def same(one, other):
    assert one.curves == other.curves  # value by value, each step once
    assert one.score == other.score
    assert one.averages.keys() == other.averages.keys()
    for mine, others in ((one.weights, other.weights), (one.averages, other.averages)):
        for kind, weights in mine.items():
            assert weights.keys() == others[kind].keys()
            assert all(torch.equal(weights[name], others[kind][name]) for name in weights)


def test_dropout_is_on(folder, whole):
    """Otherwise the tests below would not see whether the device's randomness is resumed."""
    config = yaml.safe_load((folder / "runs" / "whole" / "config.yaml").read_text())
    model = config["model"]["init_args"]
    assert model["backbone"]["init_args"]["drop_path"] > 0
    assert model["decode_head"]["init_args"]["dropout"] > 0


@pytest.mark.parametrize("workers", [0, 2])
def test_terminated_in_training(run, outcome, whole, workers):
    name, words = f"term{workers}", ("--data.num_workers", workers)
    stopped = run(name, *words, stop="train:7:7:SIGTERM")
    assert stopped.code == 75
    assert "SIGTERM: saved at step 8; the same command goes on from there" in stopped.out
    resumed = run(name, *words)
    assert resumed.code == 0, resumed.err
    assert "going on at step 8 of 12" in resumed.out
    same(outcome(name), whole)


def test_terminated_in_validation(run, outcome, whole):
    stopped = run("validation", stop="validation:10:2:SIGUSR1")
    assert stopped.code == 75
    assert "SIGUSR1: saved at step 10" in stopped.out
    assert "validation at step 10" not in stopped.out
    resumed = run("validation")
    assert resumed.code == 0, resumed.err
    assert "validation at step 10" in resumed.out
    same(outcome("validation"), whole)


def test_stopped_twice(run, outcome, whole):
    assert run("twice", stop="train:0:0:SIGTERM").code == 75
    assert run("twice", stop="train:5:5:SIGINT").code == 75
    assert run("twice").code == 0
    same(outcome("twice"), whole)


def test_terminated_before_the_last_validation(run, outcome, whole):
    stopped = run("late", stop="train:11:11:SIGTERM")
    assert stopped.code == 75
    assert run("late").code == 0
    same(outcome("late"), whole)


def test_a_finished_run_goes_on_longer(run, whole, folder, scalars):
    """Each step is logged once, with the rate of the longer schedule."""
    assert run("longer", "--trainer.max_steps", "6").code == 0
    resumed = run("longer")
    assert resumed.code == 0, resumed.err
    assert "going on at step 6 of 12" in resumed.out
    curves = scalars(folder / "runs" / "longer")
    assert [step for step, _ in curves["train/loss"]] == list(range(STEPS))
    assert [step for step, _ in curves["val/miou"]] == [4, 5, 9, 11]
    rates = {tag: curve[6:] for tag, curve in curves.items() if tag.startswith("lr/")}
    assert rates
    assert rates == {tag: whole.curves[tag][6:] for tag in rates}


def test_terminated_before_training(run, outcome, whole):
    """In the check of the validation, where Lightning's own handler has just been put in front."""
    words = ("--trainer.num_sanity_val_steps", "2")
    assert run("early", *words, stop="sanity:0:0:SIGTERM").code == 75
    assert run("early", *words).code == 0
    same(outcome("early"), whole)


def test_stopped_between_two_parts_of_a_step(run, outcome):
    """With accumulation a step is 2 batches; batch 15 is the second one of step 8."""
    words = ("--data.per_device_batch_size", "2")
    assert run("parts", *words).code == 0
    assert run("parts_stopped", *words, stop="train:7:15:SIGTERM").code == 75
    resumed = run("parts_stopped", *words)
    assert resumed.code == 0
    assert "going on at step 8 of 12" in resumed.out
    same(outcome("parts_stopped"), outcome("parts"))


@pytest.mark.parametrize("stop", ["train:7:15", "validation:10:2", "validation:12:2"])
def test_moving_average(run, outcome, folder, stop):
    """Stopped in a step of 2 batches, and while the average stands in the weights' place."""
    words = ("--data.per_device_batch_size", "2", "--average.decay", "0.8")
    if not (folder / "runs" / "averaged").exists():
        assert run("averaged", *words).code == 0
    name = f"averaged_{stop.replace(':', '_')}"
    assert run(name, *words, stop=f"{stop}:SIGTERM").code == 75
    assert run(name, *words).code == 0
    found = outcome(name)
    same(found, outcome("averaged"))
    last = found.weights["last"]
    assert any(not torch.equal(last[name], t) for name, t in found.averages["last"].items())


def test_killed_in_training(start, run, outcome, whole):
    """Steps 6 and 7 are lost with the process, and done again; killed with workers, without on."""
    process = start("killed", "--data.num_workers", "2", stop="train:7:7:SIGKILL")
    out, err = process.communicate(timeout=200)
    assert process.returncode == -signal.SIGKILL, err
    assert "step 7/12" in out
    resumed = run("killed")
    assert resumed.code == 0, resumed.err
    assert "going on at step 5 of 12" in resumed.out
    same(outcome("killed"), whole)


def test_killed_in_the_last_validation(start, run, outcome, whole):
    process = start("end", stop="validation:12:3:SIGKILL")
    process.communicate(timeout=200)
    assert process.returncode == -signal.SIGKILL
    resumed = run("end")
    assert resumed.code == 0, resumed.err
    assert "going on at step 12 of 12" in resumed.out
    assert resumed.out.count("validation at step 12  val/miou") == 1
    same(outcome("end"), whole)
    assert "is finished" in run("end").out


def test_terminated_from_outside(start, outcome, whole):
    """As a cluster does it, and resumed by the same command in another process."""
    process = start("outside", stop="train:5:5:SIGSTOP")
    os.waitpid(process.pid, os.WUNTRACED)  # until it stands still
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 75, err
    assert "SIGTERM: saved at step 6" in out
    resumed = start("outside")
    out, err = resumed.communicate(timeout=200)
    assert resumed.returncode == 0, err
    assert "going on at step 6 of 12" in out
    same(outcome("outside"), whole)
