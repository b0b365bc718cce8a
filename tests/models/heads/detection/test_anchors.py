"""Anchors against torchvision's generator, and which of them count."""

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from gmf_platform.errors import UserError
from gmf_platform.models.heads.detection.anchors import Anchors, anchors_inside, by_anchor

STRIDES = (8, 16, 32)
SCALES = (4.0, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3))


def maps_of(height, width):
    return [torch.zeros(1, 2, height // s, width // s) for s in STRIDES]


def test_rounded_equal_torchvisions():
    maps = maps_of(64, 96)
    sizes = [[stride * scale for scale in SCALES] for stride in STRIDES]
    generator = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 3)
    (expected,) = generator(ImageList(torch.zeros(1, 3, 64, 96), [(64, 96)]), maps)
    assert torch.equal(torch.cat(Anchors(STRIDES, SCALES, rounded=True)(maps)), expected)


def test_by_hand():
    (boxes,) = Anchors((8,), (2.0,), ratios=(1.0, 4.0))([torch.zeros(1, 1, 1, 2)])
    square, tall = [-8.0, -8, 8, 8], [-4.0, -16, 4, 16]
    shift = torch.tensor([8.0, 0, 8, 0])
    first = torch.tensor([square, tall])
    assert torch.equal(boxes, torch.cat([first, first + shift]))


def test_not_rounded_keep_area_and_ratio():
    anchors = Anchors((8, 16), SCALES)
    for stride, boxes in zip(anchors.strides, anchors(maps_of(32, 32)[:2]), strict=True):
        width, height = (boxes[:, 2:] - boxes[:, :2]).view(-1, 3, 3, 2).unbind(-1)
        ratios = torch.tensor([[0.5], [1.0], [2.0]]).expand_as(width)
        torch.testing.assert_close(height / width, ratios)
        areas = (stride * torch.tensor(SCALES)).square().expand_as(width)
        torch.testing.assert_close(width * height, areas)
    assert anchors.per_cell == 9


def test_as_many_maps_as_strides():
    with pytest.raises(ValueError, match="zip"):
        Anchors((8, 16), (4.0,))(maps_of(32, 32))


def test_centres_beyond_an_images_own_padding_do_not_count():
    (boxes,) = Anchors((8,), (1.0,), ratios=(1.0,))([torch.zeros(1, 1, 12, 16)])  # 96 x 128
    inside = anchors_inside(boxes, torch.tensor([33, 90])).view(12, 16)
    assert inside[:8, :12].all()  # 64 x 96
    assert inside.sum() == 8 * 12


def test_border_excludes_what_reaches_over_the_image():
    boxes = torch.tensor([[0.0, 0, 19, 9], [-1, 0, 9, 9], [0, 0, 20, 9], [0, 1, 9, 10]])
    size = torch.tensor([10, 20])
    assert anchors_inside(boxes, size, border=0).tolist() == [True, False, False, False]
    assert anchors_inside(boxes, size, border=1).all()
    assert anchors_inside(boxes, size).all()


def test_predictions_come_in_the_order_of_anchors():
    """Channels of a cell are anchor by anchor; cells go row by row."""
    x = torch.arange(2 * 6 * 3 * 4.0).view(2, 6, 3, 4)  # 2 anchors with 3 numbers
    out = by_anchor(x.bfloat16(), 3)
    assert out.dtype == torch.float32
    assert out.shape == (2, 24, 3)
    row, column, anchor = 2, 1, 1
    assert torch.equal(out[1, (row * 4 + column) * 2 + anchor], x[1, 3:, row, column])


def test_strides_of_another_pyramid():
    anchors = Anchors((8, 16), SCALES)
    anchors.check_strides([8, 16])
    with pytest.raises(
        UserError, match=r"anchors.strides: expected \[4, 8, 16\], .* not \[8, 16\]"
    ):
        anchors.check_strides((4, 8, 16))


@pytest.mark.parametrize("name", ["strides", "scales", "ratios"])
def test_no_boxes(name):
    given = {"strides": (8,), "scales": (1.0,), "ratios": (1.0,)} | {name: ()}
    with pytest.raises(UserError, match=rf"anchors\.{name}: expected one number at least"):
        Anchors(**given)
