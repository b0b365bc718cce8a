"""The schedule against mmcv's rule, written out plainly."""

import pytest

from gmf_platform.optim import Polynomial

BASE = 6e-5


def mmcv_rates(total, *, warmup_iters, warmup_ratio, power, min_lr):
    """PolyLrUpdaterHook (by_epoch=False) with warmup='linear', one rate an iteration."""
    rates = []
    for iteration in range(total):
        coefficient = (1 - iteration / total) ** power
        regular = (BASE - min_lr) * coefficient + min_lr
        if iteration < warmup_iters:
            k = (1 - iteration / warmup_iters) * (1 - warmup_ratio)
            regular = regular * (1 - k)
        rates.append(regular)
    return rates


@pytest.mark.parametrize(
    ("warmup", "ratio", "power", "min_lr"),
    [(1500, 1e-6, 1.0, 0.0), (0, 1e-6, 0.9, 0.0), (300, 0.1, 0.9, 6e-6)],
)
def test_equals_mmcv_at_every_iteration(warmup, ratio, power, min_lr):
    schedule = Polynomial(
        warmup_steps=warmup, warmup_ratio=ratio, power=power, min_factor=min_lr / BASE
    )
    ours = [BASE * schedule.factor(step, 3000) for step in range(3000)]
    theirs = mmcv_rates(3000, warmup_iters=warmup, warmup_ratio=ratio, power=power, min_lr=min_lr)
    assert ours == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 1e-6),
        (750, (1 - 750 / 160_000) * (0.5 + 0.5e-6)),
        (1499, (1 - 1499 / 160_000) * (1 - (1 - 1e-6) / 1500)),
        (1500, 0.990625),
        (80_000, 0.5),
        (159_999, 1 / 160_000),
        (160_000, 0.0),
    ],
)
def test_shipped_recipe_by_hand(step, factor):
    assert Polynomial().factor(step, 160_000) == pytest.approx(factor, rel=1e-9)


def test_stays_at_its_end_behind_it():
    assert Polynomial(warmup_steps=0, min_factor=0.1).factor(200, 100) == pytest.approx(0.1)
    assert Polynomial(warmup_steps=0).factor(200, 100) == 0


def test_warm_up_as_long_as_the_run():
    schedule = Polynomial(warmup_steps=100, warmup_ratio=0.0)
    assert schedule.factor(50, 100) == pytest.approx(0.25)
