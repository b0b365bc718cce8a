"""Pooling of regions against torchvision's."""

import pytest
import torch
from torchvision.ops import MultiScaleRoIAlign, roi_align

from gmf_platform.models.heads.detection.pooling import RoIAlign, as_regions


@pytest.fixture
def maps():
    torch.manual_seed(0)
    return [torch.randn(2, 3, 256 // s, 384 // s) for s in (4, 8, 16, 32, 64)]


@pytest.fixture
def boxes(random_boxes):
    """Of all levels, for two images."""
    boxes = random_boxes(40, seed=0)
    factors = torch.linspace(0.2, 4, 40)[:, None]
    return [boxes[:25] * factors[:25], boxes[25:] * factors[25:]]


def test_equals_torchvision(maps, boxes):
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, sampling_ratio=2)
    named = {str(i): x for i, x in enumerate(maps)}
    expected = pool(named, boxes, [(256, 384)] * 2)
    ours = RoIAlign(7, sampling_ratio=2, aligned=False)(maps, boxes)
    torch.testing.assert_close(ours, expected)


def test_levels_by_hand():
    sides = torch.tensor([1.0, 56, 111.9, 112, 223.9, 224, 447.9, 448, 5000])
    corners = torch.zeros(len(sides), 2)
    levels = RoIAlign(7)._levels(torch.cat([corners, sides[:, None].expand(-1, 2)], dim=1))
    assert levels.tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]


def test_aligned_and_adaptive_is_the_default(maps, random_boxes):
    small = random_boxes(5, seed=1) / 2
    ours = RoIAlign(14)(maps, [small, small[:0]])
    regions = as_regions([small])
    expected = roi_align(maps[0], regions, 14, 0.25, sampling_ratio=0, aligned=True)
    torch.testing.assert_close(ours, expected)


def test_a_linear_map_is_pooled_to_its_values():
    """A cell of the map holds the x of its centre, so that a box must give its own."""
    centres = (torch.arange(32.0) + 0.5) * 4
    maps = [centres.expand(1, 1, 32, 32)]
    pooled = RoIAlign(2, strides=(4,))(maps, [torch.tensor([[20.0, 20, 60, 60]])])
    torch.testing.assert_close(pooled[0, 0], torch.tensor([[30.0, 50.0], [30.0, 50.0]]))


def test_boxes_keep_their_place_in_half_precision(maps, boxes):
    halves = [x.bfloat16() for x in maps]
    expected = RoIAlign(7)([x.float() for x in halves], boxes)
    ours = RoIAlign(7)(halves, boxes)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), expected, atol=1e-2, rtol=1e-2)


def test_no_boxes(maps):
    for x in maps:
        x.requires_grad_()
    pooled = RoIAlign(7)(maps, [torch.zeros(0, 4)] * 2)
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()
    assert all(x.grad.abs().sum() == 0 for x in maps[:4])


def test_as_regions():
    regions = as_regions([torch.ones(2, 4), torch.zeros(0, 4), 2 * torch.ones(1, 4)])
    assert regions.tolist() == [[0, 1, 1, 1, 1], [0, 1, 1, 1, 1], [2, 2, 2, 2, 2]]
