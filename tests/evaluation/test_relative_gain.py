"""The gain over single tasks, by hand."""

import pytest

from gmf_platform.errors import UserError
from gmf_platform.evaluation.relative_gain import read_scores, relative_gain


def test_relative_gain_by_hand():
    """Up by a tenth, down by a fifth; a loss that fell by half and an accuracy that stayed."""
    single = {"a/x": 0.5, "b/y": 0.2, "c/loss": 2.0, "c/top1": 0.7}
    scores = {"a/x": 0.55, "b/y": 0.16, "c/loss": 1.0, "c/top1": 0.7, "d/z": 3.0}
    assert relative_gain(scores, single) == pytest.approx((0.1 - 0.2 + 0.25) / 3)


def test_scores_of_single_tasks_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"model.single_task: .*gone.json: cannot be read"):
        read_scores(str(tmp_path / "gone.json"), ["a"])
    with pytest.raises(UserError, match=r"model.single_task: a/x: 0.0 is no score"):
        read_scores({"a/x": 0.0}, ["a"])
    with pytest.raises(UserError, match=r"model.single_task: has no score of b"):
        read_scores({"a/x": 0.5, "c/x": 0.5}, ["a", "b"])
    with pytest.raises(UserError, match=r"model.single_task: a/y: joint training gives no such"):
        relative_gain({"a/x": 0.5}, {"a/y": 0.5})


def test_scores_from_a_file(tmp_path):
    (tmp_path / "single.json").write_text('{"a/x": 0.5, "b/x": 0.25}')
    assert read_scores(str(tmp_path / "single.json"), ["a"]) == {"a/x": 0.5}
