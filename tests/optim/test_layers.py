"""Layers of a backbone: their order, and stages that are frozen."""

import pytest
import torch
from torch import nn

from gmf_platform.errors import UserError
from gmf_platform.models.backbones import GroupMixFormer
from gmf_platform.optim import freeze_stages, layer_numbers

DEPTHS = (1, 2, 1, 1)


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return GroupMixFormer(
        embedding_dims=(10, 10, 20, 20), depths=DEPTHS, mlp_ratios=(1,) * 4, drop_path=0.9
    )


def test_layers_follow_the_way_of_an_image(backbone):
    """A layer's gradient is cut off where the image's way is cut in front of the layer behind it."""
    numbers = layer_numbers(backbone)
    assert set(numbers) == {name for name, _ in backbone.named_parameters()}
    assert set(numbers.values()) == set(range(1 + sum(DEPTHS)))
    layers = [layer for stage in backbone.layers_by_stage() for layer in stage]
    backbone.eval()
    for cut in range(1, len(layers)):
        backbone.zero_grad()
        hook = layers[cut][0].register_forward_pre_hook(lambda _, args: (args[0].detach(),))
        backbone(torch.randn(1, 3, 64, 64))[-1].square().sum().backward()
        hook.remove()
        reached = {numbers[n] for n, p in backbone.named_parameters() if p.grad is not None}
        assert reached == set(range(cut, len(layers)))


@pytest.mark.parametrize("count", range(5))
def test_frozen_stages_stay_as_they_are(backbone, count):
    stages = [backbone.groupmixformer_backbone[i] for i in range(4)]
    frozen = freeze_stages(backbone, count)
    backbone.train()
    for module in frozen:
        module.eval()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    features = backbone(torch.randn(2, 3, 64, 64))
    if count < 4:
        optimizer = torch.optim.SGD((p for p in backbone.parameters() if p.requires_grad), lr=1)
        sum(feature.square().mean() for feature in features).backward()
        optimizer.step()
    after = backbone.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    parts = ["conv_stem.", "patch_embed_layers.0", "groupmixformer_backbone.0"] if count else []
    for i in range(1, count):
        parts += [f"patch_embed_layers.{i}", f"groupmixformer_backbone.{i}"]
    of_frozen = {name for name in before if any(name.startswith(part) for part in parts)}
    assert not changed & of_frozen
    statistics = {name for name in before if "running" in name}
    assert statistics - of_frozen <= changed
    modes = [[m.training for b in stage.gma_stage for m in b.modules()] for stage in stages]
    assert (
        [any(mode) for mode in modes]
        == [all(mode) for mode in modes]
        == [i >= count for i in range(4)]
    )


def test_frozen_stages_are_repeatable_in_spite_of_drop_path(backbone):
    for module in freeze_stages(backbone.train(), 4):
        module.eval()
    images = torch.randn(2, 3, 64, 64)
    one, other = backbone(images), backbone(images)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("count", [-1, 5])
def test_stages_that_are_not_there(backbone, count):
    with pytest.raises(UserError, match=rf"frozen_stages: {count} is not from 0 .* to 4"):
        freeze_stages(backbone, count)


def test_backbone_that_does_not_tell_its_layers():
    with pytest.raises(UserError, match=r"model.frozen_stages: Linear .* layers_by_stage"):
        freeze_stages(nn.Linear(1, 1), 1)
    with pytest.raises(UserError, match=r"model.layer_decay: Linear .* layers_by_stage"):
        layer_numbers(nn.Linear(1, 1))
    assert freeze_stages(nn.Linear(1, 1), 0) == []
