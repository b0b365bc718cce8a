"""Ranges of numbers in a config."""

import math

import pytest

from gmf_platform.ranges import Range


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "words"),
    [
        (Range(1), [1, 1e9], [0, -1, math.nan], "1 or more"),
        (Range(0, 1), [0, 0.5, 1], [-1e-9, 1.0001, math.inf, math.nan], "0 to 1"),
        (Range(above=0), [1e-9, math.inf, 10**400], [0, -1, math.nan], "above 0"),
        (Range(above=0, most=1), [0.5, 1], [0, 1.5], "above 0, 1 or less"),
        (Range(most=-1), [-1, -math.inf], [0], "-1 or less"),
    ],
)
def test_what_is_inside(bounds, inside, outside, words):
    assert all(number in bounds for number in inside)
    assert not any(number in bounds for number in outside)
    assert str(bounds) == words
