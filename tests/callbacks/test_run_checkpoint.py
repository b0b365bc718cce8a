import math
import os
from types import SimpleNamespace

import pytest
from torch import nn

from gmf_platform.callbacks import RunCheckpoint
from gmf_platform.distributed.checkpoint_io import keep_as
from gmf_platform.errors import UserError


class Scores:
    """Stands for a trainer: writes its step as the checkpoint, has a score."""

    def __init__(self, folder):
        self.default_root_dir, self.is_global_zero = folder, True
        self.state, self.sanity_checking = SimpleNamespace(fn="fit"), False
        self.global_step, self.callback_metrics = 0, {}
        self.lightning_module, self.strategy = nn.Identity(), None

    def save_checkpoint(self, path, weights_only):
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(str(self.global_step))

    def validated(self, checkpoint, step, score):
        self.global_step, self.callback_metrics = step, {"val/miou": score}
        checkpoint.on_validation_end(self, None)


@pytest.fixture
def trainer(tmp_path):
    return Scores(tmp_path)


@pytest.mark.parametrize(
    ("mode", "scores", "best"),
    [
        ("max", [0.1, 0.3, 0.2], 2),
        ("min", [0.1, 0.3, 0.2], 1),
        ("max", [0.1, 0.1], 1),  # the earlier of equals
        ("max", [math.nan, 0.1, math.nan], 2),
        ("min", [math.nan, 0.1, math.nan], 2),
        ("max", [0.0], 1),
    ],
)
def test_best(trainer, tmp_path, mode, scores, best):
    checkpoint = RunCheckpoint(mode=mode)
    for step, score in enumerate(scores, start=1):
        trainer.validated(checkpoint, step, score)
    folder = tmp_path / "checkpoints"
    assert (folder / "best.ckpt").read_text() == str(best)
    assert (folder / "last.ckpt").read_text() == str(len(scores))
    assert (checkpoint.best_step, checkpoint.best_score) == (best, scores[best - 1])
    names = {path.name for path in folder.iterdir()}
    assert {"best.ckpt", "last.ckpt"} <= names <= {"best.ckpt", "last.ckpt", "previous.ckpt"}


def test_best_is_known_after_a_resume(trainer, tmp_path):
    before, after = RunCheckpoint(), RunCheckpoint()
    trainer.validated(before, 1, 0.5)
    after.load_state_dict(before.state_dict())
    trainer.validated(after, 2, 0.4)
    assert (tmp_path / "checkpoints" / "best.ckpt").read_text() == "1"
    assert after.validated_step == 2


def test_no_score_is_no_best(trainer, tmp_path):
    checkpoint = RunCheckpoint()
    trainer.validated(checkpoint, 1, math.nan)
    assert checkpoint.best_score is None
    assert not (tmp_path / "checkpoints" / "best.ckpt").exists()


def test_metric_that_is_not_logged(trainer):
    checkpoint = RunCheckpoint(monitor="val/iou")
    with pytest.raises(UserError, match=r"logs no 'val/iou'; one of val/miou would do"):
        trainer.validated(checkpoint, 1, 0.5)


def test_other_verbs_save_nothing(trainer, tmp_path):
    trainer.state.fn = "validate"
    trainer.validated(RunCheckpoint(), 1, 0.5)
    assert list(tmp_path.iterdir()) == []


def test_every_n_steps_is_checked():
    with pytest.raises(UserError, match=r"checkpoint\.every_n_steps: expected 1 or more, not 0"):
        RunCheckpoint(every_n_steps=0)


def test_link_replaces_and_copies_where_it_must(tmp_path, monkeypatch):
    source, target = tmp_path / "last", tmp_path / "best"
    source.write_text("new")
    target.write_text("old")
    keep_as(source, target)
    assert target.samefile(source)

    def refused(*paths):
        raise OSError("links are not supported here")

    monkeypatch.setattr(os, "link", refused)
    source.unlink()
    source.write_text("newer")
    keep_as(source, target)
    assert target.read_text() == "newer"
    assert not target.samefile(source)
    assert len(list(tmp_path.iterdir())) == 2
