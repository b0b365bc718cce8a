"""Cascade: refinement by hand, and its stages by torchvision's coder, matcher and losses."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder as TheirBoxCoder
from torchvision.models.detection._utils import Matcher as TheirMatcher
from torchvision.ops import box_iou, clip_boxes_to_image, generalized_box_iou_loss

from gmf_platform.errors import UserError
from gmf_platform.models.heads import CascadeMaskRCNN
from gmf_platform.models.heads.cascade_mask_rcnn import STAGES
from gmf_platform.models.heads.detection import BoxSettings, RPNSettings, Sampler
from gmf_platform.models.heads.detection.regions import Predicted

CLASSES = 5
OVERLAPS = (0.5, 0.6, 0.7)
STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
EVERYTHING = Sampler(100_000, 0.25)


def make_head(**arguments):
    """All proposals are drawn, so that no chance is left; weights as after some training."""
    torch.manual_seed(0)
    stages = [
        BoxSettings(s.matcher, EVERYTHING, s.stds, s.loss, s.loss_weight, s.beta) for s in STAGES
    ]
    rpn = RPNSettings(proposals_train=60, proposals_test=40)
    head = CascadeMaskRCNN(
        (8,) * 4, CLASSES, channels=8, width=32, rpn=rpn, stages=stages, **arguments
    )
    for stage in head.stages:
        torch.nn.init.normal_(stage.head.classes.weight, std=0.3)
        torch.nn.init.normal_(stage.head.deltas.weight, std=0.3)
    return head


@pytest.fixture
def features():
    torch.manual_seed(1)
    return [torch.randn(2, 8, 128 // s, 192 // s) for s in (4, 8, 16, 32)]


def test_settings_of_the_stages():
    """Of the recipe; what the stages' parts do with them is torchvision's."""
    for settings, overlap, stds in zip(STAGES, OVERLAPS, STDS, strict=True):
        assert settings.matcher.positive == settings.matcher.negative == overlap
        assert settings.matcher.low_quality is None
        assert settings.stds == stds
        assert (settings.loss, settings.loss_weight) == ("giou", 10)
        assert (settings.sampler.number, settings.sampler.positive_fraction) == (512, 0.25)


@pytest.mark.parametrize("number", range(3))
def test_matcher_and_coder_of_a_stage_equal_torchvision(random_boxes, number):
    boxes, truths = random_boxes(400, seed=1), random_boxes(8, seed=2)
    boxes = torch.cat([boxes, truths + 2, truths + 5])
    stage = make_head().stages[number]
    matches = stage.settings.matcher(boxes, truths)
    overlap = OVERLAPS[number]
    assert torch.equal(matches, TheirMatcher(overlap, overlap)(box_iou(truths, boxes)))
    assert (matches >= 0).sum() >= 8

    positive = matches >= 0
    wanted, coder = truths[matches[positive]], TheirBoxCoder([1 / x for x in STDS[number]])
    deltas = stage.coder.encode(boxes[positive], wanted)
    torch.testing.assert_close(deltas, coder.encode_single(wanted, boxes[positive]))
    torch.testing.assert_close(
        stage.coder.decode(boxes[positive], deltas / 2),
        coder.decode_single(deltas / 2, boxes[positive]),
    )


def test_refinement_by_hand():
    """Three boxes of 10 x 20, moved by half a width, doubled in height, and over the border."""
    stage = make_head().stages[0]  # stds 0.1, 0.1, 0.2, 0.2
    box = torch.tensor([20.0, 20, 30, 40])
    logits = torch.tensor([[0.0, 9, 0, 0, 0, 99], [0, 0, 9, 0, 0, 0], [0, 0, 0, 9, 0, 0]])
    deltas = torch.zeros(3, CLASSES, 4)
    deltas[0, 1] = torch.tensor([5.0, 0, 0, 0])
    deltas[0, 0] = torch.tensor([0, 0, 0, 5 * 0.6931472])
    deltas[1, 2] = torch.tensor([0, 0, 0, 5 * 0.6931472])
    deltas[2, 3] = torch.tensor([20.0, 0, 0, 0])
    predicted, boxes = Predicted(logits, deltas), [box.repeat(1, 1), box.repeat(2, 1)]
    sizes = torch.tensor([[100, 100], [45, 45]])

    one, two = stage.refined(predicted, boxes, sizes)
    torch.testing.assert_close(one, torch.tensor([[25.0, 20, 35, 40]]))
    torch.testing.assert_close(two, torch.tensor([[20.0, 10, 30, 45], [40, 20, 45, 40]]))

    # The truth of the first counts more than its logits; the others are background.
    labels = torch.tensor([0, CLASSES, CLASSES])
    one, again = stage.refined(predicted, boxes, sizes, labels)
    torch.testing.assert_close(one, torch.tensor([[20.0, 10, 30, 50]]))
    assert torch.equal(again, two)


def their_stage(number, proposals, target):
    """What is learnt from: as torchvision's RoIHeads match, truths added behind proposals."""
    boxes = torch.cat([proposals, target["boxes"]])
    matches = TheirMatcher(OVERLAPS[number], OVERLAPS[number])(box_iou(target["boxes"], boxes))
    labels = torch.where(matches >= 0, target["labels"][matches.clamp(min=0)], CLASSES)
    return boxes, matches, labels


def test_losses_of_all_stages(features, image_sizes, random_targets):
    head, targets = make_head(masks=False).train(), random_targets()
    losses = head(features, image_sizes, targets)
    maps = head.neck(features)
    proposals, _ = head.rpn(maps, image_sizes)
    for number, (stage, weight) in enumerate(zip(head.stages, (1, 0.5, 0.25), strict=True)):
        images = [their_stage(number, *image) for image in zip(proposals, targets, strict=True)]
        boxes = [boxes for boxes, _, _ in images]
        labels = torch.cat([labels for _, _, labels in images])
        logits, deltas = stage(maps, boxes)
        expected = weight * F.cross_entropy(logits, labels)
        torch.testing.assert_close(losses[f"loss_class_{number + 1}"], expected, rtol=1e-4, atol=0)

        moved_by_class = TheirBoxCoder([1 / x for x in STDS[number]]).decode(
            deltas.flatten(1), boxes
        )
        likely = torch.where(labels < CLASSES, labels, logits[:, :CLASSES].argmax(1))
        moved = moved_by_class[torch.arange(len(likely)), likely]
        truths = torch.cat(
            [
                t["boxes"][matches[matches >= 0]]
                for (_, matches, _), t in zip(images, targets, strict=True)
            ]
        )
        assert len(truths) > 10  # more than the truths themselves
        overlap = generalized_box_iou_loss(moved[labels < CLASSES], truths, reduction="sum")
        expected = weight * 10 * overlap / len(labels)
        torch.testing.assert_close(losses[f"loss_box_{number + 1}"], expected, rtol=1e-4, atol=0)

        # Without the truths, which stand behind the proposals.
        parts = moved.detach().split([len(x) for x in boxes])
        proposals = [
            clip_boxes_to_image(part[: -len(target["boxes"])], size.tolist())
            for part, target, size in zip(parts, targets, image_sizes, strict=True)
        ]


@torch.no_grad()
def test_detections_are_of_all_stages(features, image_sizes):
    """Boxes of the last stage, the mean of the logits, the mean of the masks' probabilities."""
    head = make_head().eval()
    found = head(features, image_sizes)
    maps = head.neck(features)
    boxes, _ = head.rpn(maps, image_sizes)
    total = 0
    for stage, stds in zip(head.stages, STDS, strict=True):
        logits, deltas = stage(maps, boxes)
        total = total + logits / 3
        by_class = TheirBoxCoder([1 / x for x in stds]).decode(deltas.flatten(1), boxes)
        likely = by_class[torch.arange(len(logits)), logits[:, :CLASSES].argmax(1)]
        counts = [len(x) for x in boxes]
        boxes = [
            clip_boxes_to_image(part, size.tolist())
            for part, size in zip(likely.split(counts), image_sizes, strict=True)
        ]
    start = 0
    for detections, count, size in zip(found, counts, image_sizes, strict=True):
        probabilities = total[start : start + count].softmax(1)
        clipped = clip_boxes_to_image(by_class[start : start + count], size.tolist())
        start += count
        assert len(detections.boxes) > 10
        for box, score, label in zip(*detections[:3], strict=True):
            distance = (clipped[:, label] - box).abs().amax(1) + (
                probabilities[:, label] - score
            ).abs()
            assert distance.min() < 1e-3

    labels = torch.cat([x.labels for x in found])
    masks = [m(maps, [x.boxes for x in found], labels).sigmoid() for m in head.mask_heads]
    assert not torch.allclose(masks[0], masks[1], atol=1e-2)
    torch.testing.assert_close(torch.cat([x.masks for x in found]), sum(masks) / 3)


def test_names_of_the_losses(features, image_sizes, random_targets):
    parts = {"loss_rpn_class", "loss_rpn_box"}
    parts |= {f"loss_{name}_{n}" for name in ("class", "box", "mask") for n in (1, 2, 3)}
    assert set(make_head()(features, image_sizes, random_targets())) == parts


def test_a_weight_for_each_stage():
    with pytest.raises(UserError, match="2 stage_weights for 3 stages"):
        CascadeMaskRCNN((8,) * 4, CLASSES, stage_weights=(1, 0.5))
