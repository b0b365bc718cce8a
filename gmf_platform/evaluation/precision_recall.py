"""Precision and recall over thresholds of the score, as TensorBoard draws them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["THRESHOLDS", "Curve", "curve_of_counts", "curve_of_recalls"]

THRESHOLDS = 127
"""From 0 to 1 in equal steps: the most that TensorBoard takes."""

Floats = NDArray[np.floating]
Integers = NDArray[np.int64]


class Curve(NamedTuple):
    """What counts as found at each of the thresholds, from 0 to 1.

    Attributes:
        right: true positives, int64 (THRESHOLDS,).
        wrong: false positives, likewise.
        passed: true negatives; zero where nothing is negative, as in detection.
        missed: false negatives.
        precision: float64, zero where nothing is found.
        recall: likewise.
    """

    right: Integers
    wrong: Integers
    passed: Integers
    missed: Integers
    precision: Floats
    recall: Floats


def curve_of_counts(positive: Integers, negative: Integers) -> Curve:
    """The curve of a class that each image has or has not.

    Args:
        positive: (THRESHOLDS,), images of the class by the last threshold that their score reaches.
        negative: other images likewise.
    """
    right, wrong = (np.cumsum(x[::-1])[::-1] for x in (positive, negative))
    precision = right / np.maximum(right + wrong, 1)
    recall = right / max(int(positive.sum()), 1)
    return Curve(right, wrong, wrong[0] - wrong, right[0] - right, precision, recall)


def curve_of_recalls(precision: Floats, scores: Floats, *, objects: int) -> Curve:
    """The curve of a class of objects.

    Args:
        precision: (R,), the best precision at recalls from 0 to 1 in equal steps or at a higher
            one; zero where the recall is not reached.
        scores: (R,), of the detection with which each recall is reached.
        objects: that are to be found.
    """
    thresholds = np.linspace(0, 1, THRESHOLDS)
    is_reached = (precision > 0) & (scores >= thresholds[:, None])
    last = is_reached.sum(1) - 1
    found = last >= 0
    at = np.maximum(last, 0)
    recall = np.where(found, at / (len(precision) - 1), 0.0)
    reached = np.where(found, precision[at], 0.0)
    right = np.rint(recall * objects).astype(np.int64)
    wrong = np.rint(right / np.where(found, reached, 1.0) - right).astype(np.int64)
    return Curve(right, wrong, np.zeros_like(right), objects - right, reached, recall)
