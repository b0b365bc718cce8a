"""Proposals; their losses stand against torchvision's in test_torchvision_parity."""

from dataclasses import replace

import pytest
import torch
from torchvision.ops import box_iou

from gmf_platform.models.heads.detection import RPN, RPNSettings, Sampler

SETTINGS = RPNSettings(
    candidates_train=60, candidates_test=30, proposals_train=30, proposals_test=15
)


@pytest.fixture
def maps():
    torch.manual_seed(0)
    return [torch.randn(2, 8, 128 // s, 192 // s) for s in (4, 8, 16, 32, 64)]


def make_rpn(settings=SETTINGS, *, std=0.3):
    torch.manual_seed(1)
    rpn = RPN(8, settings)
    for conv in (rpn.conv, rpn.objectness, rpn.deltas):
        torch.nn.init.normal_(conv.weight, std=std)
    return rpn


@torch.no_grad()
@pytest.mark.parametrize(("training", "number"), [(True, 30), (False, 15)])
def test_proposals(maps, image_sizes, training, number):
    """The best of all levels together, inside the image."""
    rpn = make_rpn(replace(SETTINGS, max_overlap=1.0)).train(training)
    proposals, losses = rpn(maps, image_sizes)
    assert losses == {}
    for boxes, (height, width) in zip(proposals, image_sizes.tolist(), strict=True):
        assert len(boxes) == number
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert boxes.min() >= 0
        assert (boxes[:, 2:].amax(0) <= torch.tensor([width, height])).all()


@torch.no_grad()
def test_overlap_is_limited_within_a_level(maps, image_sizes):
    rpn = make_rpn(replace(SETTINGS, max_overlap=0.2)).eval()
    first = [torch.zeros_like(x) for x in maps]
    first[2] = maps[2]  # the others' proposals are all equally likely
    proposals, _ = rpn(first, image_sizes)
    for boxes in proposals:
        overlaps = box_iou(boxes, boxes).fill_diagonal_(0)
        assert (overlaps > 0.2).sum(1).max() <= 4  # one of each other level


@torch.no_grad()
def test_the_whole_image_stands_in_for_none(maps, image_sizes):
    rpn = make_rpn(replace(SETTINGS, candidates_test=0)).eval()
    proposals, _ = rpn(maps, image_sizes)
    assert [x.tolist() for x in proposals] == [[[0, 0, 192, 128]], [[0, 0, 180, 100]]]


def generators():
    return [torch.Generator().manual_seed(seed) for seed in (1, 2)]


def test_no_gradient_goes_through_proposals(maps, image_sizes, random_targets):
    rpn = make_rpn()
    proposals, losses = rpn(maps, image_sizes, random_targets(), generators())
    assert not any(x.requires_grad for x in proposals)
    assert all(part.total.requires_grad for part in losses.values())


@pytest.mark.parametrize("numbers", [(6, 4), (0, 3)])
def test_both_losses_are_divided_by_the_number_drawn(maps, image_sizes, random_targets, numbers):
    rpn = make_rpn(replace(SETTINGS, sampler=Sampler(64, 0.5)))
    _, losses = rpn(maps, image_sizes, random_targets(numbers), generators())
    assert [part.divisor.item() for part in losses.values()] == [128, 128]


def test_anchors_over_the_border_are_not_learnt_from(maps, image_sizes, random_targets):
    everything = Sampler(100_000, 0.5)
    drawn = []
    for border in (None, 0.0):
        rpn = make_rpn(replace(SETTINGS, sampler=everything, allowed_border=border))
        _, losses = rpn(maps, image_sizes, random_targets((0, 0)), generators())
        drawn.append(losses["loss_rpn_class"].divisor.item())
    anchors = torch.cat(SETTINGS.anchors(maps))
    inside = [
        ((anchors[:, :2] >= 0).all(1) & (anchors[:, 2:] < size.flip(0)).all(1)).sum()
        for size in image_sizes
    ]
    # The images' own padding ends where the batch's does.
    assert drawn == [2 * len(anchors), sum(inside)]
