"""Schedules against mmcv's rules written out plainly, timm's scheduler and PyTorch's."""

import pytest
import torch
from timm.scheduler import CosineLRScheduler
from torch import nn

from gmf_platform.errors import UserError
from gmf_platform.optim import Cosine, MultiStep, Polynomial

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


def optimizer_of(lr):
    return torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=lr)


@pytest.mark.parametrize(
    ("warmup", "ratio", "power", "min_lr"),
    [(1500, 1e-6, 1.0, 0.0), (0, 1e-6, 0.9, 0.0), (300, 0.1, 0.9, 6e-6)],
)
def test_polynomial_equals_mmcv_at_every_iteration(warmup, ratio, power, min_lr):
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
def test_shipped_polynomial_by_hand(step, factor):
    assert Polynomial().factor(step, 160_000) == pytest.approx(factor, rel=1e-9)


def test_polynomial_stays_at_its_end_behind_it():
    assert Polynomial(warmup_steps=0, min_factor=0.1).factor(200, 100) == pytest.approx(0.1)
    assert Polynomial(warmup_steps=0).factor(200, 100) == 0


def test_polynomial_with_a_warm_up_as_long_as_the_run():
    schedule = Polynomial(warmup_steps=100, warmup_ratio=0.0)
    assert schedule.factor(50, 100) == pytest.approx(0.25)


# GroupMixFormer's rates for a global batch of 512 (config.py), and those of 2048 on 300 epochs.
@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize(("epochs", "warmup", "per_epoch"), [(300, 20, 37), (30, 5, 101.7)])
def test_cosine_equals_timms_at_every_iteration(scale, epochs, warmup, per_epoch):
    base, first, last = (scale * rate for rate in (5e-4, 5e-7, 5e-6))
    total = int(epochs * per_epoch)
    optimizer = optimizer_of(base)
    timms = CosineLRScheduler(
        optimizer,
        t_initial=total,
        lr_min=last,
        warmup_t=int(warmup * per_epoch),
        warmup_lr_init=first,
        t_in_epochs=False,
    )
    ours = Cosine(warmup_epochs=warmup, warmup_factor=first / base, min_factor=last / base)
    for step in range(total + 3):  # and behind the end
        timms.step_update(step)
        rate = base * ours.factor(step, total, steps_per_epoch=per_epoch)
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)


def test_cosine_by_hand():
    """At the end of the warm-up the published schedule falls to 0.989 of its peak."""
    schedule = Cosine(warmup_epochs=20)
    factors = [schedule.factor(step, 3000, steps_per_epoch=10) for step in (0, 100, 199, 200, 3000)]
    assert factors[:3] == pytest.approx([1e-3, 0.5005, 0.995005])
    assert factors[3] == pytest.approx(0.98918, abs=1e-5)
    assert factors[4] == pytest.approx(0.01)


def test_cosine_counts_its_warm_up_in_steps_too():
    by_epochs, by_steps = Cosine(warmup_epochs=2.5), Cosine(warmup_steps=25)
    for step in range(100):
        factor = by_epochs.factor(step, 100, steps_per_epoch=10)
        assert by_steps.factor(step, 100) == factor
    assert Cosine().factor(0, 100) == 1.0


def test_cosine_refuses_a_warm_up_in_two_units():
    with pytest.raises(UserError, match=r"warmup_epochs \(20\).*warmup_steps \(500\)"):
        Cosine(warmup_epochs=20, warmup_steps=500)


@pytest.mark.parametrize(("epochs", "milestones"), [(12, [8, 11]), (36, [27, 33])])
def test_multi_step_equals_pytorchs_under_mmcvs_warm_up(epochs, milestones):
    per_epoch, warmup, ratio = 60, 500, 1e-3
    optimizer = optimizer_of(1e-4)
    torchs = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
    ours = MultiStep(milestones=milestones)
    for epoch in range(epochs):
        for step in range(epoch * per_epoch, (epoch + 1) * per_epoch):
            rate = optimizer.param_groups[0]["lr"]
            if step < warmup:  # mmcv's LrUpdaterHook.get_warmup_lr
                rate *= 1 - (1 - step / warmup) * (1 - ratio)
            factor = ours.factor(step, epochs * per_epoch, steps_per_epoch=per_epoch)
            assert 1e-4 * factor == pytest.approx(rate, rel=1e-12)
        optimizer.step()
        torchs.step()


def test_milestones_of_epochs_that_end_within_a_step():
    schedule = MultiStep(milestones=[1, 2], gamma=0.5, warmup_steps=0)
    factors = [schedule.factor(step, 8, steps_per_epoch=2.5) for step in range(7)]
    assert factors == [1, 1, 1, 0.5, 0.5, 0.25, 0.25]


@pytest.mark.parametrize("schedule", [MultiStep(), Cosine(warmup_epochs=1)])
def test_epochs_of_unknown_length_are_refused(schedule):
    with pytest.raises(UserError, match="steps_per_epoch"):
        schedule.factor(0, 100)
