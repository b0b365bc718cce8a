import os
import signal
import subprocess
import sys

import pytest

from gmf_platform.cli.run_directory import RunDirectory, config_differences, content_hash
from gmf_platform.errors import UserError

HOLD = """\
import sys, time
from pathlib import Path
from gmf_platform.cli.run_directory import RunDirectory
run = RunDirectory(Path(sys.argv[1]))
run.acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def hold(tmp_path):
    """Start a process that holds the lock of the run ``a``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "a"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_lock_of_a_living_run(hold, tmp_path):
    run = RunDirectory(tmp_path / "a")
    with pytest.raises(UserError, match=rf"is alive \(process {hold.pid} on .*--name"):
        run.acquire()
    with pytest.raises(UserError):  # the refused attempt has not freed it
        run.acquire()
    RunDirectory(tmp_path / "b").acquire()  # another run is free


def test_lock_is_taken_over_after_a_crash(hold, tmp_path):
    os.kill(hold.pid, signal.SIGKILL)
    hold.wait()
    run = RunDirectory(tmp_path / "a")
    assert (run.path / "lock").exists()  # left behind
    run.acquire()
    assert (run.path / "lock").read_text().startswith(f"process {os.getpid()} on ")
    run.release()
    assert not (run.path / "lock").exists()


def test_release_without_lock(tmp_path):
    RunDirectory(tmp_path / "a").release()
    assert not (tmp_path / "a").exists()


OLD = """
seed_everything: 0
data: {class_path: X, init_args: {root: a, num_workers: 2, per_device_batch_size: null}}
trainer: {max_steps: 5, devices: 1, strategy: auto, gradient_clip_val: null, precision: null}
checkpoint: {every_n_steps: 5, monitor: m}
model: {class_path: T, init_args: {optimizer: {class_path: A, init_args: {lr: 0.1}}}}
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("num_workers: 2", "num_workers: 4"),
        ("per_device_batch_size: null", "per_device_batch_size: 2"),
        ("max_steps: 5", "max_steps: 50"),
        ("devices: 1", "devices: [0, 1]"),
        ("strategy: auto", "strategy: {class_path: S, init_args: {stage: 2}}"),
        ("every_n_steps: 5", "every_n_steps: 7"),
    ],
)
def test_keys_that_may_differ(before, after):
    assert before in OLD
    assert config_differences(OLD.replace(before, after), OLD) == []


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("root: a", "root: b", "data.root: a -> b"),
        ("lr: 0.1", "lr: 0.2", "model.optimizer.lr: 0.1 -> 0.2"),
        ("seed_everything: 0", "seed_everything: 1", "seed_everything: 0 -> 1"),
        ("class_path: T", "class_path: U", "model.class_path: T -> U"),
        ("precision: null", "precision: bf16-mixed", "trainer.precision: None -> bf16-mixed"),
        ("{lr: 0.1}", "{lr: 0.1, eps: 1}", "model.optimizer.eps: (not set) -> 1"),
        ("{root: a, ", "{", "data.root: a -> (not set)"),
    ],
)
def test_keys_that_may_not(before, after, said):
    assert before in OLD
    assert config_differences(OLD.replace(before, after), OLD) == [said]


def test_differences_in_order():
    new = OLD.replace("root: a", "root: b").replace("lr: 0.1", "lr: 0.2")
    assert [line.split(":")[0] for line in config_differences(new, OLD)] == [
        "data.root",
        "model.optimizer.lr",
    ]


def test_scores_and_a_half_written_last_line(tmp_path):
    run = RunDirectory(tmp_path / "a")
    assert list(run.scores()) == []
    run.record({"verb": "fit", "step": 5, "finished": True, "val/miou": 0.5})
    run.record({"verb": "validate", "step": 5})
    with run.metrics.open("a") as file:
        file.write('{"verb": "fit", "step": 9, "fin')
    assert [score["verb"] for score in run.scores()] == ["fit", "validate"]
    assert run.final_score(5) == {"verb": "fit", "step": 5, "finished": True, "val/miou": 0.5}
    assert run.final_score(6) is None  # a longer run is not done


def test_a_line_after_a_half_written_one_is_whole(tmp_path):
    run = RunDirectory(tmp_path / "a")
    run.record({"step": 1})
    with run.metrics.open("a") as file:
        file.write('{"step": 2, "fin')
    run.record({"step": 3})
    assert [score["step"] for score in run.scores()] == [1, 3]


def test_set_aside_keeps_all(tmp_path):
    run = RunDirectory(tmp_path / "a")
    run.checkpoints.mkdir(parents=True)
    run.last.write_bytes(b"weights")
    run.record({"step": 1})
    aside = run.set_aside()
    assert not run.path.exists()
    assert aside.parent == tmp_path
    assert aside.name.startswith("a.")
    kept = RunDirectory(aside)
    assert (kept.last.read_bytes(), list(kept.scores())) == (b"weights", [{"step": 1}])


def test_set_aside_twice_in_a_second(tmp_path):
    run = RunDirectory(tmp_path / "a")
    asides = set()
    for number in range(3):
        run.record({"step": number})
        asides.add(run.set_aside())
    steps = {score["step"] for aside in asides for score in RunDirectory(aside).scores()}
    assert steps == {0, 1, 2}


def test_best_or_last(tmp_path):
    run = RunDirectory(tmp_path / "a")
    with pytest.raises(UserError, match="the run has no checkpoint yet"):
        run.best_or_last()
    run.checkpoints.mkdir(parents=True)
    run.last.touch()
    assert run.best_or_last() == run.last
    run.best.touch()
    assert run.best_or_last() == run.best


def test_content_hash(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert content_hash(tmp_path / "f") == "ba7816bf8f01"  # SHA-256 of abc: FIPS 180-4's example
