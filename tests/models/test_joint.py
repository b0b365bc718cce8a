"""One backbone with several heads: how often it runs, and that nothing else changes by it."""

import pytest
import torch
from torch import nn

from gmf_platform.errors import UserError
from gmf_platform.models.classifier import Classifier
from gmf_platform.models.joint import JointModel
from gmf_platform.models.segmenter import Segmenter


class Backbone(nn.Module):
    """One map, and a count of the calls."""

    channels, strides = (4,), (4,)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, stride=4)
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return [self.conv(images)]


class Pooled(nn.Module):
    """Classes of the one map's mean."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, features):
        return self.linear(features[0].mean((2, 3)))


class Pixels(nn.Module):
    """Classes of the one map's pixels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 5, 1)

    def forward(self, features):
        return self.conv(features[0])


@pytest.fixture
def joint():
    torch.manual_seed(0)
    backbone = Backbone()
    models = {"cls": Classifier(backbone, Pooled()), "seg": Segmenter(backbone, Pixels())}
    return JointModel(backbone, models, nn.Identity()).eval()


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (2, 3, 32, 64), generator=generator, dtype=torch.uint8)
    return images, torch.tensor([[32, 64], [32, 64]])


def both(joint, images, sizes):
    return joint("cls", images), joint("seg", images, sizes).logits


@torch.no_grad()
def test_the_same_images_take_one_pass(joint):
    alone = both(joint, *batch(0))
    assert joint.backbone.calls == 2
    with joint.features_shared():
        shared = both(joint, *batch(0))
        assert joint.backbone.calls == 3
    for one, other in zip(alone, shared, strict=True):
        assert torch.equal(one, other)


@torch.no_grad()
def test_other_images_take_their_own(joint):
    alone = [both(joint, *batch(seed)) for seed in (0, 1)]
    with joint.features_shared():
        shared = [both(joint, *batch(seed)) for seed in (0, 1)]
    assert joint.backbone.calls == 4 + 2
    for one, other in zip(sum(alone, ()), sum(shared, ()), strict=True):
        assert torch.equal(one, other)


@torch.no_grad()
def test_nothing_is_kept_behind_the_block(joint):
    with joint.features_shared():
        both(joint, *batch(0))
    joint.backbone.conv.weight.zero_()
    both(joint, *batch(0))
    assert joint.backbone.calls == 3


def test_the_backbone_is_held_once(joint):
    names = {name.split(".")[0] for name, _ in joint.named_parameters()}
    assert names == {"backbone", "cls", "seg"}
    assert sum("conv" in name for name in joint.state_dict()) == 4  # backbone's and seg's


@pytest.mark.parametrize("name", ["backbone", "forward", "a task"])
def test_a_name_that_is_taken(name):
    backbone = Backbone()
    with pytest.raises(UserError, match=rf"model.tasks.{name}: a task cannot be called so"):
        JointModel(backbone, {name: Classifier(backbone, Pooled())}, nn.Identity())
