"""When a run is warned of batch norms that see too few samples."""

import pytest

from gmf_platform.cli.output import norm_advice
from gmf_platform.distributed.order import plan_batches


@pytest.mark.parametrize(
    ("norm", "devices", "per_device", "seen"),
    [
        ("sync", 1, 4, None),
        ("sync", 1, 3, 3),
        ("sync", 1, 2, 2),
        ("sync", 2, 2, None),
        ("sync", 2, 1, 2),
        ("train", 4, 3, 3),
        ("train", 2, 6, None),
    ],
)
def test_samples_that_a_norm_sees(norm, devices, per_device, seen):
    advice = norm_advice(norm, plan_batches(12, devices, per_device))
    assert (f"see {seen} samples at a time" in advice) == (seen is not None)
    assert ("--model.norm frozen" in advice) == (seen is not None)
    assert bool(advice) == (seen is not None)


def test_frozen_norms_are_those_of_the_backbone():
    assert "those of the heads see 1 samples" in norm_advice("frozen", plan_batches(12, 1, 1))
    assert norm_advice("frozen", plan_batches(12, 1, 4)) == ""


def test_other_devices_help_only_when_there_are_any():
    assert "--model.norm sync" in norm_advice("train", plan_batches(8, 4, 2))
    assert "--model.norm sync" not in norm_advice("train", plan_batches(8, 1, 2))


def test_the_summary_of_a_run_says_it(gmf, base):
    small = ("--data.per_device_batch_size", 2, "--trainer.max_steps", 1)
    warned = gmf("fit", *base, *small, "--dry-run")
    assert "batch norms see 2 samples at a time" in warned.out
    silent = gmf("fit", *base, *small, "--dry-run", "--model.norm", "frozen")
    assert silent.code == 0
    assert "batch norms see" not in silent.out
