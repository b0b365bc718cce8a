import math

import numpy as np

from gmf_platform.evaluation.charts import confusion_chart, most_confused, score_chart
from gmf_platform.evaluation.class_report import most_frequent

BLUE, GREEN, RED = (70, 120, 190), (34, 139, 34), (205, 55, 40)


def rows_of(picture, colour):
    """Pixels of a colour in each bar, from the top; rows without any are left out."""
    counts = (picture == colour).all(axis=2).sum(1)
    starts = np.flatnonzero((counts > 0) & (np.roll(counts, 1) == 0))
    return [int(counts[start]) for start in starts]


def test_a_bar_for_each_class_the_most_frequent_first():
    names = ["rare", "never", "common", "undefined"]
    chart = score_chart(names, [0.25, 0.9, 0.75, math.nan], [1, 0, 100, 10])
    common, rare = rows_of(chart, BLUE)
    assert abs(common / rare - 3) < 0.1
    taller = score_chart([*names, "more"], [0.25, 0.9, 0.75, math.nan, 0.5], [1, 0, 100, 10, 5])
    assert taller.shape[0] > chart.shape[0]


def test_of_very_many_classes_the_worst():
    scores = [label / 1000 for label in range(1000)]
    chart = score_chart([str(label) for label in range(1000)], scores, [50] * 1000)
    few = score_chart([str(label) for label in range(200)], scores[:200], [50] * 200)
    assert np.array_equal(chart, few)


def test_classes_that_are_taken_for_each_other_stand_side_by_side():
    confusion = np.diag(np.full(60, 100))
    confusion[7, 31], confusion[40, 2], confusion[31, 50] = 30, 20, 10
    assert most_confused(confusion) == [7, 31, 40, 2, 50]
    assert most_confused(confusion, 4) == [7, 31, 40, 2]
    assert most_confused(confusion[:9, :9]) == list(range(9))


def test_cells_are_shares_of_their_row():
    confusion = np.array([[300, 100], [0, 4]])
    chart = confusion_chart(["one", "two"], confusion).astype(int)
    size = 30
    corner = np.array(chart.shape[:2]) - 4 - 2 * size

    def cell(i, j):
        y, x = corner + size * np.array([i, j]) + 3
        return chart[y, x]

    def mixed(colour, share):
        return [round(255 - math.sqrt(share) * (255 - c)) for c in colour]

    assert cell(0, 0).tolist() == mixed(GREEN, 0.75)
    assert cell(0, 1).tolist() == mixed(RED, 0.25)
    assert cell(1, 0).tolist() == [255, 255, 255]
    assert cell(1, 1).tolist() == list(GREEN)


def test_a_class_without_truth_has_an_empty_row():
    chart = confusion_chart(["one", "two"], np.array([[5, 5], [0, 0]]))
    assert chart.shape == confusion_chart(["one", "two"], np.eye(2, dtype=int)).shape


def test_the_most_frequent():
    assert most_frequent([3, 0, 9, 3], 3) == [2, 0, 3]
    assert most_frequent([0, 0]) == []
