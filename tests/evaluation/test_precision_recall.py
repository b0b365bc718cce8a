"""Against TensorBoard's own curve of binary labels, and COCO tables worked out by hand."""

import numpy as np
import pytest
from torch.utils.tensorboard.summary import compute_curve

from gmf_platform.evaluation.precision_recall import (
    THRESHOLDS,
    curve_of_counts,
    curve_of_recalls,
)


def test_counts_give_tensorboards_curve():
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 500)
    scores = np.clip(draw.normal(0.3 + 0.3 * labels, 0.3), 0, 1)
    last = np.floor(scores * (THRESHOLDS - 1)).astype(int)
    counts = (np.bincount(last[labels == k], minlength=THRESHOLDS) for k in (1, 0))
    curve = curve_of_counts(*counts)
    expected = compute_curve(labels, scores, num_thresholds=THRESHOLDS)
    np.testing.assert_allclose(np.stack(curve), expected, atol=1e-6)
    assert curve.recall[0] == 1
    assert curve.precision[0] == pytest.approx(labels.mean())


def test_a_class_that_does_not_occur():
    nothing = np.zeros(THRESHOLDS, np.int64)
    curve = curve_of_counts(nothing, nothing)
    assert not np.stack(curve).any()


def test_recalls_by_hand():
    """Two of four objects are found: one first, at 0.9, then the other at 0.6 behind a mistake."""
    recalls = np.linspace(0, 1, 101)
    precision = np.select([recalls <= 0.25, recalls <= 0.5], [1.0, 2 / 3])
    scores = np.select([recalls <= 0.25, recalls <= 0.5], [0.9, 0.6])
    curve = curve_of_recalls(precision, scores, objects=4)
    thresholds = np.linspace(0, 1, THRESHOLDS)
    high, low = (thresholds > 0.6) & (thresholds <= 0.9), thresholds <= 0.6
    right, wrong, passed, missed = curve[:4]
    assert (right[high] == 1).all()
    assert (right[low] == 2).all()
    assert (wrong[high] == 0).all()
    assert (wrong[low] == 1).all()
    assert not passed.any()
    assert (right + missed == 4).all()
    assert not np.stack(curve)[[0, 1, 4, 5]][:, thresholds > 0.9].any()
    np.testing.assert_allclose(curve.precision[low], 2 / 3)
    np.testing.assert_allclose(curve.recall[high], 0.25)


def test_nothing_found():
    curve = curve_of_recalls(np.zeros(101), np.zeros(101), objects=3)
    assert (curve.missed == 3).all()
    assert not np.stack(curve)[[0, 1, 2, 4, 5]].any()
