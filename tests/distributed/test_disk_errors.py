"""What the system says of a disk is what is raised, whatever a library makes of it."""

import errno
import os

import pytest
from torch.distributed.checkpoint.api import CheckpointException

from gmf_platform.distributed import checkpoint_io
from gmf_platform.distributed.checkpoint_io import _save


class Trainer:
    def __init__(self, error):
        self.error = error

    def save_checkpoint(self, path, *, weights_only):
        raise self.error


def full():
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def after(error, earlier):
    error.__context__ = earlier
    return error


@pytest.mark.parametrize(
    "error",
    [
        full(),
        after(RuntimeError("unexpected pos 896 vs 790"), full()),
        CheckpointException("", {1: (after(RuntimeError("in a shard"), full()), None)}),
    ],
)
def test_what_is_behind_it(error, tmp_path):
    with pytest.raises(OSError, match="No space left") as raised:
        _save(Trainer(error), tmp_path / "last.ckpt")
    assert raised.value.errno == errno.ENOSPC
    assert raised.value.filename == str(tmp_path / "last.ckpt")


def test_the_disk_is_asked(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint_io, "_asked", lambda folder: full())
    with pytest.raises(OSError, match="No space left"):
        _save(Trainer(RuntimeError("basic_ios::clear: iostream error")), tmp_path / "last.ckpt")


def test_what_is_not_of_the_disk_stays(monkeypatch, tmp_path):
    """A process that has lost another one says so, also where the disk is full."""
    monkeypatch.setattr(checkpoint_io, "_asked", lambda folder: full())
    with pytest.raises(RuntimeError, match="Connection closed by peer"):
        _save(Trainer(RuntimeError("gloo: Connection closed by peer")), tmp_path / "last.ckpt")


def test_a_disk_that_takes_files(tmp_path):
    assert checkpoint_io._asked(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
