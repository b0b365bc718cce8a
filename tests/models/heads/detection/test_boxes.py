"""Box deltas against torchvision's coder."""

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder as TheirBoxCoder

from gmf_platform.models.heads.detection.boxes import BoxCoder, clip_boxes, full_precision

STDS = [(1.0, 1.0, 1.0, 1.0), (0.1, 0.1, 0.2, 0.2), (0.033, 0.033, 0.067, 0.067)]


@pytest.mark.parametrize("stds", STDS)
def test_equals_torchvision(random_boxes, stds):
    boxes, truths = random_boxes(20, seed=1), random_boxes(20, seed=2)
    ours, theirs = BoxCoder(stds), TheirBoxCoder([1 / std for std in stds])
    deltas = ours.encode(boxes, truths)
    torch.testing.assert_close(deltas, theirs.encode_single(truths, boxes))
    torch.testing.assert_close(
        ours.decode(boxes, deltas / 2), theirs.decode_single(deltas / 2, boxes)
    )
    torch.testing.assert_close(ours.decode(boxes, deltas), truths)


def test_by_hand():
    """From (0, 0, 10, 20) to a box of twice the width, with its centre at (10, 10)."""
    coder = BoxCoder((0.1, 0.1, 0.2, 0.2))
    box, truth = torch.tensor([0.0, 0, 10, 20]), torch.tensor([0.0, 0, 20, 20])
    expected = torch.tensor([0.5 / 0.1, 0.0, 0.6931472 / 0.2, 0.0])
    torch.testing.assert_close(coder.encode(box, truth), expected)


@pytest.mark.parametrize("sign", [1, -1])
def test_wild_deltas_stay_finite(sign):
    """Sizes change by a factor of 1000 / 16 at most."""
    box = torch.tensor([[0.0, 0, 16, 16]])
    x1, _, x2, _ = BoxCoder().decode(box, torch.tensor([[0.0, 0, sign * 1e4, 0]]))[0]
    assert x2 - x1 == pytest.approx(1000 if sign > 0 else 16**2 / 1000)


def test_clip_to_each_image():
    boxes = torch.tensor([[-5.0, 3, 50, 60], [10, -9, 20, 30]]).expand(2, 2, 4)
    sizes = torch.tensor([[40, 45], [20, 15]])
    clipped = clip_boxes(boxes, sizes[:, None])
    assert clipped[0].tolist() == [[0, 3, 45, 40], [10, 0, 20, 30]]
    assert clipped[1].tolist() == [[0, 3, 15, 20], [10, 0, 15, 20]]
    assert torch.equal(clip_boxes(boxes[1], sizes[1]), clipped[1])


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_full_precision(dtype, expected):
    assert full_precision(torch.zeros(1, dtype=dtype)).dtype == expected
