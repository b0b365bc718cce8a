"""Masks to learn: by hand and against torchvision's."""

import pytest
import torch
from torchvision.models.detection.roi_heads import project_masks_on_boxes

from gmf_platform.errors import UserError
from gmf_platform.models.heads.detection import MaskHead, RoIAlign
from gmf_platform.models.heads.detection import masks as masks_module
from gmf_platform.models.heads.detection.masks import mask_targets
from gmf_platform.models.heads.detection.regions import Regions

CLASSES = 5


def test_targets_by_hand():
    """The left half of the first box; the second lies on background."""
    mask = torch.zeros(2, 64, 64, dtype=torch.uint8)
    mask[1, 10:40, 10:24] = 1
    boxes = torch.tensor([[10.0, 10, 38, 38], [50, 50, 60, 60]])
    truths = torch.tensor([1, 1])
    targets = mask_targets(mask, boxes, truths, size=28, aligned=True, binary=True)
    expected = torch.zeros(28, 28)
    expected[:, :14] = 1
    assert torch.equal(targets[0], expected)
    assert targets[1].sum() == 0


@pytest.mark.parametrize("at_once", [64, 4])
def test_targets_equal_torchvision(random_targets, random_boxes, monkeypatch, at_once):
    monkeypatch.setattr(masks_module, "MASKS_AT_ONCE", at_once)
    masks = random_targets()[0]["masks"]
    boxes, truths = random_boxes(9, seed=3), torch.arange(9) % len(masks)
    expected = project_masks_on_boxes(masks, boxes, truths, 28)
    soft = mask_targets(masks, boxes, truths, size=28, aligned=False, binary=False)
    torch.testing.assert_close(soft, expected)
    assert 0 < expected.mean() < 1
    hard = mask_targets(masks, boxes, truths, size=28, aligned=False, binary=True)
    assert torch.equal(hard, (expected >= 0.5).float())


@pytest.fixture
def maps():
    torch.manual_seed(0)
    return [torch.randn(2, 4, 128 // s, 192 // s) for s in (4, 8, 16, 32)]


def head():
    torch.manual_seed(1)
    return MaskHead(4, CLASSES, pool=RoIAlign(14))


def regions_of(targets):
    """The truths themselves as positive regions, and one of background."""
    for target in targets:
        boxes, number = target["boxes"], len(target["boxes"])
        yield Regions(
            boxes=torch.cat([boxes, torch.tensor([[1.0, 1, 9, 9]])]),
            labels=torch.cat([target["labels"], torch.tensor([CLASSES])]),
            truths=torch.arange(number),
            given=torch.arange(number + 1) < number,
        )


def test_the_mask_of_the_label(maps, random_targets):
    targets = random_targets()
    labels = torch.cat([target["labels"] for target in targets])
    boxes = [target["boxes"] for target in targets]
    masks = head()
    logits = masks(maps, boxes, labels)
    assert logits.shape == (len(labels), 28, 28)
    masks.logits.weight.data[2] = 0
    masks.logits.bias.data[2] = 7
    changed = masks(maps, boxes, labels)
    assert (changed[labels == 2] == 7).all()
    assert torch.equal(changed[labels != 2], logits[labels != 2])


def test_loss_is_the_mean_over_positive_regions(maps, random_targets):
    targets = random_targets()
    loss = head().losses(maps, list(regions_of(targets)), targets)
    labels = torch.cat([target["labels"] for target in targets])
    logits = head()(maps, [target["boxes"] for target in targets], labels)
    wanted = torch.cat(
        [
            mask_targets(
                t["masks"],
                t["boxes"],
                torch.arange(len(t["boxes"])),
                size=28,
                aligned=True,
                binary=True,
            )
            for t in targets
        ]
    )
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted)
    torch.testing.assert_close(loss.total / loss.divisor, expected)


def test_without_objects_every_parameter_has_a_zero_gradient(maps, random_targets):
    masks, targets = head(), random_targets((0, 0))
    loss = masks.losses(maps, list(regions_of(targets)), targets)
    loss.total.backward()
    assert loss.total == loss.divisor == 0
    assert all(p.grad.abs().sum() == 0 for p in masks.parameters())


def test_missing_masks_are_named(maps, random_targets):
    targets = random_targets()
    del targets[1]["masks"]
    with pytest.raises(UserError, match=r"data\.with_masks.*FasterRCNN"):
        head().losses(maps, list(regions_of(targets)), targets)
