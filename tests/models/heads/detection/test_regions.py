"""Regions to learn from, and what is learnt."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

from gmf_platform.models.heads.detection import (
    BoxHead,
    BoxSettings,
    Matcher,
    RegionStage,
    RoIAlign,
    Sampler,
)
from gmf_platform.models.heads.detection.matching import region_generator
from gmf_platform.models.heads.detection.regions import Predicted

CLASSES = 5


def make_stage(**settings):
    torch.manual_seed(0)
    return RegionStage(BoxHead(4, CLASSES, width=16), RoIAlign(7), BoxSettings(**settings))


@pytest.mark.parametrize(("convs", "linears"), [(0, 2), (4, 1)])
def test_box_head(convs, linears):
    head = BoxHead(4, CLASSES, num_convs=convs, num_linears=linears, width=16)
    logits, deltas = head(torch.randn(3, 4, 7, 7))
    assert logits.shape == (3, CLASSES + 1)
    assert deltas.shape == (3, CLASSES, 4)
    assert len(head.convs) == convs
    assert len(head.linears) == linears
    assert head.classes.weight.std().item() == pytest.approx(0.01, rel=0.3)
    assert head.deltas.weight.std().item() == pytest.approx(0.001, rel=0.3)
    # Xavier, uniform: the bound is sqrt(6 / (inputs + outputs)).
    weight = head.linears[0].weight
    assert weight.abs().max().item() == pytest.approx((6 / sum(weight.shape)) ** 0.5, rel=0.01)


def test_sample_by_hand():
    target = {"boxes": torch.tensor([[0.0, 0, 10, 10], [30, 30, 40, 40]]), "seed": 0}
    target["labels"] = torch.tensor([3, 1])
    proposals = torch.tensor([[0.0, 0, 10, 4], [30, 30, 40, 38], [80, 80, 90, 90]])
    regions = make_stage().sample(proposals, target, region_generator(target))
    every_box = torch.cat([target["boxes"], proposals])
    assert torch.equal(regions.boxes, every_box[[0, 1, 3, 2, 4]])
    assert regions.labels.tolist() == [3, 1, 1, CLASSES, CLASSES]
    assert regions.truths.tolist() == [0, 1, 1]
    assert regions.given.tolist() == [True, True, False, False, False]
    assert torch.equal(regions.positive, every_box[[0, 1, 3]])


def test_sample_of_an_image_without_objects(random_boxes):
    target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "seed": 0}
    stage = make_stage(sampler=Sampler(8, 0.25))
    regions = stage.sample(random_boxes(20, seed=0), target, region_generator(target))
    assert regions.labels.tolist() == [CLASSES] * 8
    assert len(regions.truths) == regions.given.sum() == 0


def sampled(stage, random_boxes, random_targets, numbers=(6, 4)):
    targets = random_targets(numbers)
    regions = []
    for target in targets:
        jitter = 4 * torch.rand(len(target["boxes"]), 4)
        proposals = torch.cat([target["boxes"] + jitter, random_boxes(15, seed=7)])
        regions.append(stage.sample(proposals, target, region_generator(target)))
    count = sum(len(r.boxes) for r in regions)
    logits = torch.randn(count, CLASSES + 1, requires_grad=True)
    deltas = torch.randn(count, CLASSES, 4, requires_grad=True)
    return Predicted(logits, deltas), regions, targets


def each_positive(predicted, regions, targets):
    """Deltas of its class, box and truth of each positive region, one by one."""
    start = 0
    for region, target in zip(regions, targets, strict=True):
        for i, truth in enumerate(region.truths.tolist()):
            deltas = predicted.deltas[start + i, target["labels"][truth]]
            yield deltas, region.boxes[i], target["boxes"][truth]
        start += len(region.boxes)


@pytest.mark.parametrize("beta", [0.0, 1 / 9])
def test_losses_of_deltas(random_boxes, random_targets, beta):
    stage = make_stage(beta=beta, loss_weight=3.0)
    predicted, regions, targets = sampled(stage, random_boxes, random_targets)
    losses = stage.losses(predicted, regions, targets)
    expected = sum(
        F.smooth_l1_loss(deltas, stage.coder.encode(box, truth), reduction="sum", beta=beta)
        for deltas, box, truth in each_positive(predicted, regions, targets)
    )
    torch.testing.assert_close(losses["box"].total, 3 * expected)
    labels = torch.cat([r.labels for r in regions])
    of_class = F.cross_entropy(predicted.logits, labels, reduction="sum")
    torch.testing.assert_close(losses["class"].total, of_class)
    assert losses["class"].divisor == losses["box"].divisor == len(labels)


def test_losses_of_decoded_boxes(random_boxes, random_targets):
    stage = make_stage(loss="giou", loss_weight=10.0)
    predicted, regions, targets = sampled(stage, random_boxes, random_targets)
    expected = sum(
        generalized_box_iou_loss(stage.coder.decode(box, deltas), truth)
        for deltas, box, truth in each_positive(predicted, regions, targets)
    )
    total = stage.losses(predicted, regions, targets)["box"].total
    torch.testing.assert_close(total, 10 * expected)


@pytest.mark.parametrize("loss", ["l1", "giou"])
def test_without_positive_regions_the_gradient_is_zero(random_boxes, random_targets, loss):
    stage = make_stage(loss=loss, matcher=Matcher(0.5, 0.5, 0.5))
    predicted, regions, targets = sampled(stage, random_boxes, random_targets, (0, 0))
    total = stage.losses(predicted, regions, targets)["box"].total
    assert total == 0
    assert torch.autograd.grad(total, predicted.deltas)[0].abs().sum() == 0
