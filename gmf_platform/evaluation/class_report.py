"""What an evaluation says of single classes, for charts."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gmf_platform.evaluation.precision_recall import Curve

__all__ = ["CURVES", "ClassReport", "most_frequent"]

CURVES = 20
"""Classes, from the most frequent on, that have curves of their own."""


@dataclass
class ClassReport:
    """Scores of the classes of a split, in label order.

    Attributes:
        counts: how often each occurs in the truth: pixels, objects or images.
        scores: by name, fractions 0..1; NaN for a class that does not occur.
        confusion: (K, K), what is counted by true and by predicted class; None where it is not
            known.
        curves: of the most frequent classes, by name and label.
    """

    counts: Sequence[int]
    scores: dict[str, Sequence[float]]
    confusion: NDArray[np.int64] | None = None
    curves: dict[str, dict[int, Curve]] = field(default_factory=dict)


def most_frequent(counts: Sequence[int], number: int = CURVES) -> list[int]:
    """Labels of the classes that occur most often, the first first; those that never do are out."""
    order = np.argsort(-np.asarray(counts), kind="stable")[:number].tolist()
    return [label for label in order if counts[label]]
