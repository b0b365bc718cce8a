"""RetinaNet and Mask R-CNN against torchvision's own models: same weights, same settings."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection import MaskRCNN as TheirMaskRCNN
from torchvision.models.detection import RetinaNet as TheirRetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from gmf_platform.models.heads import MaskRCNN, RetinaNet
from gmf_platform.models.heads.detection import (
    Anchors,
    BoxSettings,
    Matcher,
    RPNSettings,
    Sampler,
    Selection,
)

CLASSES = 5
CHANNELS = (64, 128, 256, 512)
# The transform is to do nothing but pad.
TRANSFORM = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
EVERYTHING = 1_000_000  # drawn per image, so that no chance is left


@dataclass
class Pair:
    """A detector of torchvision, our head with its weights, and the same images for both."""

    theirs: nn.Module
    ours: nn.Module
    images: list
    sizes: torch.Tensor
    padded: tuple

    def __post_init__(self):
        self.theirs.transform.resize = lambda image, target: (image, target)

    def features(self):
        """Maps of the padded batch."""
        batch = torch.zeros(len(self.images), 3, *self.padded)
        for x, image in zip(batch, self.images, strict=True):
            x[:, : image.shape[1], : image.shape[2]] = image
        return list(self.theirs.backbone.body(batch).values())

    def train(self):
        """Losses may be asked for, while the backbone's batch norms stay in evaluation."""
        self.theirs.train()
        self.ours.train()
        self.theirs.backbone.eval()
        return self

    def eval(self):
        self.theirs.eval()
        self.ours.eval()
        return self

    def gradients(self, losses):
        """Of the sum of the losses, at the first and at a late weight of the backbone."""
        body = self.theirs.backbone.body
        return torch.autograd.grad(
            sum(losses.values()), [body.conv1.weight, body.layer4[1].conv2.weight]
        )


def pyramid(extra_blocks, layers):
    names = {f"layer{n}": str(n - 1) for n in layers}
    return BackboneWithFPN(
        resnet18(weights=None), names, [CHANNELS[n - 1] for n in layers], 256, extra_blocks
    )


def spread(*convs):
    """Larger weights than at the start, so that what is compared differs from box to box."""
    for conv, std in convs:
        nn.init.normal_(conv.weight, std=std)


def copy(pairs):
    """Their parameters into ours: (ours, theirs) or (ours, theirs, how the rows change)."""
    for ours, theirs, *change in pairs:
        rows = change[0] if change else (lambda x: x)
        ours.load_state_dict({key: rows(x) for key, x in theirs.state_dict().items()})


def pyramid_pairs(ours, theirs):
    for lateral, block in zip(ours.lateral_convs, theirs.inner_blocks, strict=True):
        yield lateral, block[0]
    for conv, block in zip(ours.fpn_convs, theirs.layer_blocks, strict=True):
        yield conv, block[0]


def images_of(sizes):
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(3, *size, generator=generator) for size in sizes.tolist()]


@pytest.fixture
def retina(image_sizes):
    torch.manual_seed(0)
    sizes = [[32 * 2**i * 2 ** (j / 3) for j in range(3)] for i in range(5)]
    theirs = TheirRetinaNet(
        pyramid(LastLevelP6P7(512, 256), (2, 3, 4)),
        CLASSES,
        anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5),
        detections_per_img=EVERYTHING,
        size_divisible=128,  # torchvision takes the strides from the sizes of the maps
        **TRANSFORM,
    )
    head = theirs.head
    for conv in (*head.classification_head.conv, *head.regression_head.conv):
        nn.init.kaiming_normal_(conv[0].weight)
    spread((head.classification_head.cls_logits, 0.03), (head.regression_head.bbox_reg, 0.01))
    nn.init.constant_(head.classification_head.cls_logits.bias, -3.5)
    ours = RetinaNet(
        CHANNELS,
        CLASSES,
        anchors=Anchors(
            (8, 16, 32, 64, 128), (4, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3)), rounded=True
        ),
        matcher=Matcher(0.5, 0.4, low_quality=0.0, reassign=False),
        normalizer="image",
        selection=Selection(number=EVERYTHING),
        relu_in_pyramid=True,
    )
    fpn = theirs.backbone.fpn
    copy(pyramid_pairs(ours.neck, fpn))
    copy(zip(ours.neck.extra_convs, (fpn.extra_blocks.p6, fpn.extra_blocks.p7), strict=True))
    for tower, branch, last in (
        (ours.class_tower, head.classification_head, head.classification_head.cls_logits),
        (ours.box_tower, head.regression_head, head.regression_head.bbox_reg),
    ):
        copy(zip(tower[::2], [*(block[0] for block in branch.conv), last], strict=True))
    # The second image's own padding would end at 128 x 192 as the first's does; the batch's at 256.
    return Pair(theirs, ours, images_of(image_sizes), image_sizes, (128, 256))


@pytest.fixture
def mask_rcnn(image_sizes):
    torch.manual_seed(0)
    theirs = TheirMaskRCNN(
        pyramid(LastLevelMaxPool(), (1, 2, 3, 4)),
        CLASSES + 1,
        rpn_post_nms_top_n_train=100,
        rpn_post_nms_top_n_test=50,
        rpn_batch_size_per_image=EVERYTHING,
        box_batch_size_per_image=EVERYTHING,
        box_detections_per_img=EVERYTHING,
        rpn_anchor_generator=AnchorGenerator(
            ((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5
        ),
        **TRANSFORM,
    )
    roi, rpn = theirs.roi_heads, theirs.rpn.head
    spread((rpn.cls_logits, 0.3), (rpn.bbox_pred, 0.1))
    spread((roi.box_predictor.cls_score, 0.3), (roi.box_predictor.bbox_pred, 0.1))
    ours = MaskRCNN(
        CHANNELS,
        CLASSES,
        rpn=RPNSettings(
            anchors=Anchors((4, 8, 16, 32, 64), (8.0,), rounded=True),
            matcher=Matcher(0.7, 0.3, low_quality=0.0, reassign=False),
            sampler=Sampler(EVERYTHING, 0.5),
            beta=1 / 9,
            proposals_train=100,
            proposals_test=50,
        ),
        box=BoxSettings(matcher=Matcher(0.5, 0.5), sampler=Sampler(EVERYTHING, 0.25), beta=1 / 9),
        sampling_ratio=2,
        aligned=False,
        binary_mask_targets=False,
        selection=Selection(number=EVERYTHING),
    )
    copy(pyramid_pairs(ours.neck, theirs.backbone.fpn))
    box, mask = ours.stages[0].head, ours.mask_heads[0]
    copy(
        [
            (ours.rpn.conv, rpn.conv[0][0]),
            (ours.rpn.objectness, rpn.cls_logits),
            (ours.rpn.deltas, rpn.bbox_pred),
            (box.linears[0], roi.box_head.fc6),
            (box.linears[1], roi.box_head.fc7),
            (box.classes, roi.box_predictor.cls_score, lambda x: x.roll(-1, 0)),
            (box.deltas, roi.box_predictor.bbox_pred, lambda x: x[4:]),
            *((conv, block[0]) for conv, block in zip(mask.convs, roi.mask_head, strict=True)),
            (mask.upsample, roi.mask_predictor.conv5_mask),
            (mask.logits, roi.mask_predictor.mask_fcn_logits, lambda x: x[1:]),
        ]
    )
    return Pair(theirs, ours, images_of(image_sizes), image_sizes, (128, 192))


def their_targets(targets, image_sizes, *, first_label):
    """Labels from ``first_label``, masks without padding."""
    return [
        {
            "boxes": target["boxes"],
            "labels": target["labels"] + first_label,
            "masks": target["masks"][:, :height, :width],
        }
        for target, (height, width) in zip(targets, image_sizes.tolist(), strict=True)
    ]


def assert_same_losses(pair, ours, theirs, names, relative_error):
    assert set(names) == set(ours)
    assert set(names.values()) == set(theirs)
    for name, their_name in names.items():
        assert theirs[their_name] > 1e-3
        assert ours[name].item() == pytest.approx(theirs[their_name].item(), rel=1e-5), name
    for a, b in zip(pair.gradients(ours), pair.gradients(theirs), strict=True):
        assert relative_error(a, b) < 1e-4


@pytest.mark.parametrize("numbers", [(6, 4), (0, 3)])
def test_losses_of_retinanet(retina, random_targets, numbers, relative_error):
    retina.train()
    retina.sizes[:] = torch.tensor([128, 256])  # torchvision matches anchors in padding, too
    targets = random_targets(numbers)
    theirs = retina.theirs(retina.images, their_targets(targets, retina.sizes, first_label=0))
    ours = retina.ours([None, *retina.features()], retina.sizes, targets)
    names = {"loss_class": "classification", "loss_box": "bbox_regression"}
    assert_same_losses(retina, ours, theirs, names, relative_error)


def assert_same_detections(ours, theirs, *, first_label):
    """Slivers do not count: torchvision's two models drop them at different widths, we at 0."""
    kept, wanted = (
        ((boxes[:, 2:] - boxes[:, :2]) > 1e-2).all(1) for boxes in (ours.boxes, theirs["boxes"])
    )
    assert wanted.sum() > 20
    torch.testing.assert_close(ours.boxes[kept], theirs["boxes"][wanted], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.scores[kept], theirs["scores"][wanted], atol=1e-4, rtol=1e-4)
    assert torch.equal(ours.labels[kept], theirs["labels"][wanted] - first_label)
    assert len(ours.labels.unique()) > 1
    if ours.masks is not None:
        masks = theirs["masks"][wanted][:, 0]
        torch.testing.assert_close(ours.masks[kept], masks, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_detections_of_retinanet(retina):
    retina.eval()
    found = retina.ours([None, *retina.features()], retina.sizes)
    for ours, theirs in zip(found, retina.theirs(retina.images), strict=True):
        assert_same_detections(ours, theirs, first_label=0)


@pytest.mark.parametrize("numbers", [(6, 4), (0, 3)])
def test_losses_of_mask_rcnn(mask_rcnn, random_targets, numbers, relative_error):
    mask_rcnn.train()
    targets = random_targets(numbers)
    expected = their_targets(targets, mask_rcnn.sizes, first_label=1)
    theirs = mask_rcnn.theirs(mask_rcnn.images, expected)
    ours = mask_rcnn.ours(mask_rcnn.features(), mask_rcnn.sizes, targets)
    names = {
        "loss_rpn_class": "loss_objectness",
        "loss_rpn_box": "loss_rpn_box_reg",
        "loss_class": "loss_classifier",
        "loss_box": "loss_box_reg",
        "loss_mask": "loss_mask",
    }
    assert_same_losses(mask_rcnn, ours, theirs, names, relative_error)


@torch.no_grad()
def test_detections_of_mask_rcnn(mask_rcnn):
    theirs = mask_rcnn.eval().theirs
    images, _ = theirs.transform(mask_rcnn.images)
    features = theirs.backbone(images.tensors)
    proposals, _ = theirs.rpn(images, features)
    # What torchvision's forward does before it pastes the masks.
    expected, _ = theirs.roi_heads(features, proposals, images.image_sizes)
    found = mask_rcnn.ours(mask_rcnn.features(), mask_rcnn.sizes)
    for ours, wanted in zip(found, expected, strict=True):
        assert ours.masks.shape[1:] == (28, 28)
        assert_same_detections(ours, wanted, first_label=1)
