"""Labels at original size against the plain two steps with all logits at once."""

import pytest
import torch
from torch.nn import functional as F

from gmf_platform.evaluation import labels_at_original_size, segmentation

# padded_size, size, original_size
CASES = {
    "reduced": ((64, 96), (64, 96), (133, 201)),
    "padded": ((64, 96), (50, 77), (111, 170)),
    "enlarged": ((64, 96), (64, 96), (30, 45)),
    "as it is": ((64, 96), (64, 96), (64, 96)),
    "padded only": ((64, 96), (60, 90), (60, 90)),
}


def make_logits(num_classes=7, size=(16, 24)):
    return torch.randn(num_classes, *size, generator=torch.Generator().manual_seed(0))


def in_two_steps(logits, padded_size, size, original_size):
    x = F.interpolate(logits[None], padded_size, mode="bilinear", align_corners=False)
    x = x[:, :, : size[0], : size[1]]
    return F.interpolate(x, original_size, mode="bilinear", align_corners=False)[0].argmax(0)


def labels(logits, case):
    padded_size, size, original_size = case
    return labels_at_original_size(
        logits, padded_size=padded_size, size=size, original_size=original_size
    )


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_two_steps(case):
    result = labels(make_logits(), case)
    assert result.dtype == torch.uint8
    assert torch.equal(result.long(), in_two_steps(make_logits(), *case))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("classes_at_once", [0.5, 1, 2, 3])
def test_portions_change_nothing(case, classes_at_once, monkeypatch):
    whole = labels(make_logits(), case)
    largest = max(case[0][0] * case[0][1], case[2][0] * case[2][1])
    monkeypatch.setattr(segmentation, "_VALUES_AT_ONCE", int(classes_at_once * largest))
    assert torch.equal(labels(make_logits(), case), whole)


def test_first_of_equal_classes_wins_in_portions(monkeypatch):
    monkeypatch.setattr(segmentation, "_VALUES_AT_ONCE", 1)
    assert labels(torch.zeros(5, 4, 4), ((4, 4),) * 3).unique().tolist() == [0]


def test_all_256_labels_fit():
    logits = torch.eye(256)[:, None, :]  # pixel i is class i
    assert labels(logits, ((1, 256),) * 3).flatten().tolist() == list(range(256))


def test_reduced_precision_is_resized_in_float32():
    logits = make_logits().bfloat16()
    case = CASES["padded"]
    assert torch.equal(labels(logits, case).long(), in_two_steps(logits.float(), *case))


def test_sampled_loss_of_as_many_points_is_the_loss():
    logits, truth = make_logits(size=(128, 128)), torch.randint(0, 7, (128, 128), dtype=torch.uint8)
    truth[:, :40] = 255
    view = segmentation.View(logits, (128, 128), (128, 128))
    expected = F.cross_entropy(logits[None], truth[None].long(), ignore_index=255)
    torch.testing.assert_close(segmentation.sampled_loss(view, truth), expected)


def test_sampled_loss_sees_the_image_and_no_padding():
    """Left half of one class, right half of another, in an image of another size than the input."""
    logits = torch.zeros(2, 16, 24)
    logits[0, :, :6], logits[1, :, 6:12], logits[:, :, 12:] = 5.0, 5.0, torch.nan
    logits[:, 8:] = torch.nan
    truth = torch.zeros(90, 120, dtype=torch.uint8)
    truth[:, 60:] = 1
    view = segmentation.View(logits, (64, 96), (32, 48))
    expected = F.cross_entropy(torch.tensor([[5.0, 0.0]]), torch.tensor([0]))
    torch.testing.assert_close(segmentation.sampled_loss(view, truth), expected)
    assert segmentation.sampled_loss(view, torch.full_like(truth, 255)).isnan()
