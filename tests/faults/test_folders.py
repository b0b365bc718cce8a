"""Checkpoints that are cut off, and folders that nothing can be written to from the start."""

import os
import random
import shutil

import pytest


@pytest.fixture
def stopped(run, monkeypatch):
    """A run that was asked to stop at its tenth step, with a checkpoint before the last."""

    def make(under):
        whole = run(under)
        monkeypatch.setenv("HARM", "SIGTERM 0 training 8")
        life = whole.start()
        assert set(life.codes) == {75}, life.said
        monkeypatch.delenv("HARM")
        return whole

    return make


def cut_off(path, share):
    """Leave a share of a checkpoint's file, or of its largest shard."""
    files = [file for file in (path, *path.rglob("*")) if file.is_file()]
    file = max(files, key=lambda file: file.stat().st_size)
    # A hard link of the same bytes must not be cut off with it.
    shutil.copy(file, file.with_name("copy"))
    file.with_name("copy").replace(file)
    os.truncate(file, int(share * file.stat().st_size))


@pytest.mark.parametrize(("under", "tries"), [("one", 10), ("fsdp", 1), ("zero2", 1)])
def test_cut_off(under, tries, stopped, undisturbed, record_fault, tmp_path):
    """The run goes on from the one before, at any place that it was cut off."""
    before = stopped(under)
    draw = random.Random(0)
    name = "checkpoint truncated" if under == "one" else f"a shard truncated, {under}"
    for number in range(tries):
        (tmp_path / str(number)).mkdir()
        harmed_run = before.copy(tmp_path / str(number))
        cut_off(harmed_run.last.resolve(), draw.random() if number else 0)
        resumed = harmed_run.start()
        assert set(resumed.codes) == {0}, resumed.said
        assert "going on at step 8 of 12" in resumed.said
        record_fault(name, caught_up=resumed.ended - resumed.began)
        harmed_run.outcome().assert_is(undisturbed(under))


def test_both_cut_off(stopped, record_fault):
    """A clear error, and nothing is removed or begun anew."""
    harmed_run = stopped("one")
    previous = harmed_run.last.with_name("previous.ckpt")
    for path in (harmed_run.last, previous):
        cut_off(path, 0.5)
    files = {path: path.stat().st_size for path in harmed_run.last.parent.iterdir()}
    life = harmed_run.start()
    assert life.codes == (2,)
    assert "previous.ckpt" in life.said
    assert "Traceback" not in life.said
    assert {path: path.stat().st_size for path in harmed_run.last.parent.iterdir()} == files
    record_fault("both checkpoints truncated")


def test_run_folder_is_read_only(run, disk, mend, undisturbed, record_fault):
    harmed_run = run("one")
    disk("read-only")
    life = harmed_run.start()
    assert life.codes == (2,)
    assert "cannot be written: Read-only file system; have it mounted" in life.said
    assert "Traceback" not in life.said
    mend()
    resumed = harmed_run.start()
    assert resumed.codes == (0,), resumed.said
    record_fault("run folder read-only from the start")
    harmed_run.outcome().assert_is(undisturbed("one"))


def test_tensorboard_folder_is_read_only(run, disk, mend, undisturbed, record_fault, tmp_path):
    """Of a logger that the config names, whose folder is not the run's."""
    logger = "lightning.pytorch.loggers.TensorBoardLogger"
    curves = tmp_path / "runs"
    words = ("--trainer.logger", f"{{class_path: {logger}, init_args: {{save_dir: {curves}}}}}")
    harmed_run = run("one", *words, "--runs", "others")
    harmed_run.path = tmp_path / "others" / "a"
    harmed_run.last = harmed_run.path / "checkpoints" / "last.ckpt"
    disk("read-only")
    life = harmed_run.start()
    assert life.codes == (2,), life.said
    assert "cannot be written: Read-only file system" in life.said
    assert "Traceback" not in life.said
    mend()
    resumed = harmed_run.start()
    assert resumed.codes == (0,), resumed.said
    record_fault("TensorBoard's folder read-only")
    found = harmed_run.outcome(curves / "lightning_logs" / "version_0")
    found.assert_is(undisturbed("one"))
