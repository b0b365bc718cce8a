"""Cross-entropy against its formula."""

import pytest
import torch
from torch.nn import functional as F

from gmf_platform.models.losses import CrossEntropy

K, SIZE = 5, (24, 32)


@pytest.fixture
def logits():
    return torch.randn(2, K, 6, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)


@pytest.fixture
def labels():
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, K, (2, *SIZE), generator=generator, dtype=torch.uint8)
    labels[0, :10] = 255
    return labels


def by_formula(logits, labels):
    """Sum of -log p over the labelled pixels, over the number of all pixels."""
    resized = F.interpolate(logits.double(), SIZE, mode="bilinear", align_corners=False)
    logp = resized - resized.exp().sum(1, keepdim=True).log()
    total = torch.zeros((), dtype=torch.double)
    for k in range(K):
        total = total - logp[:, k][labels == k].sum()
    return total / labels.numel()


def test_equals_the_formula(logits, labels):
    loss = CrossEntropy()(logits, labels)
    expected = by_formula(logits, labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-8, rtol=1e-4)


def test_denominator_counts_ignored_pixels(logits, labels):
    resized = F.interpolate(logits, SIZE, mode="bilinear", align_corners=False)
    mean_of_labelled = F.cross_entropy(resized, labels.long(), ignore_index=255)
    share = (labels != 255).float().mean()
    assert share < 1
    torch.testing.assert_close(CrossEntropy()(logits, labels), mean_of_labelled * share)


def test_mean_over_processes_is_the_whole_batch(logits, labels):
    """With unequal numbers of ignored pixels, as averaging gradients over processes needs."""
    parts = [CrossEntropy()(logits[i : i + 1], labels[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(torch.stack(parts).mean(), CrossEntropy()(logits, labels))


def test_nothing_labelled_gives_zero_and_zero_gradients(logits):
    loss = CrossEntropy()(logits, torch.full((2, *SIZE), 255, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_another_ignored_label(logits, labels):
    renamed = torch.where(labels == 255, 77, labels)
    assert CrossEntropy(ignore_index=77)(logits, renamed) == CrossEntropy()(logits, labels)


def test_reduced_precision_is_summed_in_float32(logits, labels):
    loss = CrossEntropy()(logits.bfloat16(), labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(by_formula(logits, labels).item(), rel=0.01)
