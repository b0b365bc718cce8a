"""Focal loss against torchvision's; divisors over processes."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss

from gmf_platform.models.heads.detection.losses import LossSum, focal_loss, means
from gmf_platform.models.heads.detection.matching import IGNORED, NEGATIVE


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 0.0), (0.9, 1.5)])
def test_focal_loss_equals_torchvision(alpha, gamma, relative_error):
    torch.manual_seed(0)
    logits = (4 * torch.randn(2, 40, 6)).requires_grad_()
    labels = torch.randint(IGNORED, 6, (2, 40))
    one_hot = F.one_hot(labels.clamp(min=0), 6) * (labels >= 0)[..., None]
    by_class = sigmoid_focal_loss(logits, one_hot.float(), alpha, gamma)
    expected = (by_class.sum(2) * (labels != IGNORED)).sum(1)
    sums = focal_loss(logits, labels, alpha=alpha, gamma=gamma)
    assert relative_error(sums, expected) < 1e-6
    gradients = [torch.autograd.grad(x.sum(), logits)[0] for x in (sums, expected)]
    assert relative_error(*gradients) < 1e-6


@pytest.mark.parametrize("label", [NEGATIVE, IGNORED])
def test_focal_loss_of_extreme_logits_is_finite(label):
    logits = torch.tensor([[[-1e4, 1e4]]], requires_grad=True)
    sums = focal_loss(logits, torch.tensor([[label]]), alpha=0.25, gamma=2.0)
    sums.sum().backward()
    assert sums.item() == (0.75 * 1e4 if label == NEGATIVE else 0)
    assert logits.grad.isfinite().all()


def test_means():
    sums = {
        "a": LossSum.of(torch.tensor(6.0), 3),
        "b": LossSum.of(torch.tensor(6.0), 3).weighted(0.5),
        "none": LossSum.of(torch.tensor(0.0), 0),
    }
    assert means(sums) == {"a": 2.0, "b": 1.0, "none": 0.0}


def test_mean_over_processes_is_the_loss_of_the_whole_batch(run_processes):
    totals, divisors = [6.0, 2.0], [3, 0]

    def local(rank):
        loss = means(
            {
                "a": LossSum.of(torch.tensor(totals[rank]), divisors[rank]),
                "b": LossSum.of(torch.tensor(0.0), 0),
            }
        )
        return {name: value.item() for name, value in loss.items()}

    first, second = run_processes(local, 2)
    assert (first["a"] + second["a"]) / 2 == pytest.approx(8 / 3)
    assert first["b"] == second["b"] == 0
