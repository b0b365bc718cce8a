"""Losses against their formulas in plain PyTorch, in float64."""

import pytest
import torch
from torch.nn import functional as F

from gmf_platform.errors import UserError
from gmf_platform.models.losses import CrossEntropy, Dice, Focal, OhemCrossEntropy, Sum

K, SIZE = 5, (24, 32)
WEIGHTS = [0.5, 2.0, 1.0, 0.0, 3.0]


@pytest.fixture
def logits():
    return torch.randn(2, K, 6, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)


@pytest.fixture
def labels():
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, K, (2, *SIZE), generator=generator, dtype=torch.uint8)
    labels[0, :10] = 255
    return labels


def enlarged(logits):
    return F.interpolate(logits.double(), SIZE, mode="bilinear", align_corners=False)


def cross_entropy(logits, labels, weights=(1,) * K):
    """Weighted sum of -log p over the labelled pixels, over the number of all pixels."""
    x = enlarged(logits)
    logp = x - x.exp().sum(1, keepdim=True).log()
    terms = [-weights[k] * logp[:, k][labels == k].sum() for k in range(K)]
    return sum(terms) / labels.numel()


def ohem(logits, labels, kept, threshold):
    """The pixels that the losses are summed over, one by one, by the rule."""
    p = enlarged(logits).softmax(1).permute(0, 2, 3, 1)[labels != 255]
    own = p[torch.arange(len(p)), labels[labels != 255].long()]
    ranked = sorted(own.tolist())
    limit = max(ranked[min(kept * len(labels), len(ranked) - 1)], threshold)
    return sum(-q.log() for q in own if q < limit) / labels.numel()


def focal(logits, labels, alpha, gamma):
    """Each class against the others: -(1 - q)^gamma log q, where q is the chance of the truth."""
    p = enlarged(logits).sigmoid()
    total = torch.zeros((), dtype=torch.double)
    for k in range(K):
        right, wrong = p[:, k][labels == k], 1 - p[:, k][(labels != k) & (labels != 255)]
        total = total - alpha * ((1 - right) ** gamma * right.log()).sum()
        total = total - (1 - alpha) * ((1 - wrong) ** gamma * wrong.log()).sum()
    return total / (labels.numel() * K)


def dice(logits, labels, smooth):
    p = enlarged(logits).softmax(1)
    losses = []
    for i in range(len(labels)):
        for k in range(K):
            mine, truth = p[i, k][labels[i] != 255], labels[i][labels[i] != 255] == k
            overlap = 2 * mine[truth].sum() + smooth
            losses.append(1 - overlap / (mine.square().sum() + truth.sum() + smooth))
    return sum(losses) / len(losses)


CASES = {
    "cross-entropy": (CrossEntropy(), cross_entropy),
    "weighted": (CrossEntropy(class_weights=WEIGHTS), lambda *x: cross_entropy(*x, WEIGHTS)),
    "ohem by count": (
        OhemCrossEntropy(threshold=0.05, min_kept=200),
        lambda *x: ohem(*x, 200, 0.05),
    ),
    "ohem by threshold": (
        OhemCrossEntropy(threshold=0.4, min_kept=10),
        lambda *x: ohem(*x, 10, 0.4),
    ),
    "ohem of few": (OhemCrossEntropy(), lambda *x: ohem(*x, 100_000, 0.7)),
    "focal": (Focal(), lambda *x: focal(*x, 0.5, 2)),
    "focal, other settings": (Focal(alpha=0.25, gamma=1.5), lambda *x: focal(*x, 0.25, 1.5)),
    "dice": (Dice(), lambda *x: dice(*x, 1)),
    "dice, other smoothing": (Dice(smooth=20), lambda *x: dice(*x, 20)),
    "sum": (
        Sum(losses=[CrossEntropy(), Dice()], weights=[0.5, 3]),
        lambda *x: 0.5 * cross_entropy(*x) + 3 * dice(*x, 1),
    ),
    "plain sum": (
        Sum(losses=[Focal(), Dice()]),
        lambda *x: focal(*x, 0.5, 2) + dice(*x, 1),
    ),
}
BY_NAME = pytest.mark.parametrize(("loss", "formula"), CASES.values(), ids=CASES)
EXACT = {name: case[0] for name, case in CASES.items() if not name.startswith("ohem")}


@BY_NAME
def test_equals_the_formula(loss, formula, logits, labels):
    value, expected = loss(logits, labels), formula(logits, labels)
    assert expected > 0.01
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(value, logits)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-8, rtol=1e-4)


@BY_NAME
def test_nothing_labelled_gives_zero_and_zero_gradients(loss, formula, logits):
    value = loss(logits, torch.full((2, *SIZE), 255, dtype=torch.uint8))
    value.backward()
    assert value.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("loss", EXACT.values(), ids=EXACT)
def test_mean_over_processes_is_the_whole_batch(loss, logits, labels):
    """With unequal numbers of ignored pixels, as averaging gradients over processes needs."""
    parts = [loss(logits[i : i + 1], labels[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(torch.stack(parts).mean(), loss(logits, labels))


@BY_NAME
def test_reduced_precision_is_summed_in_float32(loss, formula, logits, labels):
    value = loss(logits.bfloat16(), labels)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(formula(logits, labels).item(), rel=0.01)


@BY_NAME
def test_nothing_goes_into_checkpoints(loss, formula):
    assert loss.state_dict() == {}


def test_denominator_counts_ignored_pixels(logits, labels):
    resized = F.interpolate(logits, SIZE, mode="bilinear", align_corners=False)
    mean_of_labelled = F.cross_entropy(resized, labels.long(), ignore_index=255)
    share = (labels != 255).float().mean()
    assert share < 1
    torch.testing.assert_close(CrossEntropy()(logits, labels), mean_of_labelled * share)


@pytest.mark.parametrize("loss_class", [CrossEntropy, OhemCrossEntropy, Focal, Dice])
def test_another_ignored_label(loss_class, logits, labels):
    renamed = torch.where(labels == 255, 77, labels)
    assert loss_class(ignore_index=77)(logits, renamed) == loss_class()(logits, labels)


def test_hard_pixels_keep_their_weights(logits, labels):
    """With a threshold that all pixels are under, only the weights are left."""
    all_hard = OhemCrossEntropy(threshold=1.0, class_weights=WEIGHTS)(logits, labels)
    torch.testing.assert_close(all_hard, CrossEntropy(class_weights=WEIGHTS)(logits, labels))


def test_easy_pixels_get_no_gradient(labels):
    """Logits at the labels' own size, so that pixels do not mix."""
    truth = torch.where(labels == 255, 0, labels).long()
    logits = 9.0 * F.one_hot(truth, K).permute(0, 3, 1, 2).float()
    logits[1, :, :, :3] = 0  # known and undecided: hard
    logits.requires_grad_()
    OhemCrossEntropy(min_kept=1)(logits, labels).backward()
    touched = logits.grad.abs().sum(1) > 0
    assert touched[1, :, :3].all()
    assert touched.sum() == touched[1, :, :3].sum()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sum(losses=[]), "at least one loss"),
        (lambda: Sum(losses=[Dice()], weights=[1, 2]), "2 weights for 1 losses"),
        (lambda: Dice(smooth=0), "smooth"),
        (lambda: OhemCrossEntropy(threshold=2), "threshold 2 must be 0..1"),
        (lambda: OhemCrossEntropy(min_kept=0), "min_kept 0"),
    ],
)
def test_settings_that_make_no_sense(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_class_weights_for_other_classes(logits, labels):
    with pytest.raises(UserError, match="3 weights for 5 classes"):
        CrossEntropy(class_weights=[1, 2, 3])(logits, labels)
