"""Whose turn it is: by shares, the same whoever asks."""

from collections import Counter

import pytest

from gmf_platform.distributed.turns import BySize, Ratios, RoundRobin
from gmf_platform.errors import UserError

SIZES = {"a": 100, "b": 400, "c": 1600}


def drawn(turns, steps=6000, seed=0):
    return [turns.task(step, sizes=SIZES, seed=seed) for step in range(steps)]


@pytest.mark.parametrize(
    ("turns", "shares"),
    [
        (Ratios({"c": 1, "a": 2, "b": 1}), {"a": 0.5, "b": 0.25, "c": 0.25}),
        (BySize(), {"a": 1 / 21, "b": 4 / 21, "c": 16 / 21}),
        (BySize(0.5), {"a": 1 / 7, "b": 2 / 7, "c": 4 / 7}),
        (BySize(0.0), {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}),
        (RoundRobin(), {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}),
    ],
)
def test_shares(turns, shares):
    assert turns.shares(SIZES) == pytest.approx(shares)
    counts = Counter(drawn(turns))
    for name, share in shares.items():
        assert counts[name] / 6000 == pytest.approx(share, abs=0.02)


def test_one_after_the_other():
    assert drawn(RoundRobin(), steps=5) == ["a", "b", "c", "a", "b"]


def test_a_step_is_drawn_from_seed_and_step_alone():
    turns = BySize(0.5)
    assert drawn(turns, steps=50)[20:] == [
        turns.task(s, sizes=SIZES, seed=0) for s in range(20, 50)
    ]
    assert drawn(turns, steps=50) != drawn(turns, steps=50, seed=1)


@pytest.mark.parametrize(
    "ratios", [{"a": 1, "b": 1}, {"a": 1, "b": 1, "c": 1, "d": 1}, {"a": 1, "b": 0, "c": 1}]
)
def test_ratios_that_do_not_fit(ratios):
    with pytest.raises(UserError, match=r"data.turns.ratios: [bcd]: give each of a, b, c"):
        Ratios(ratios).shares(SIZES)
