"""Which parameters are decayed and which learn slower, by count, name and rate."""

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from gmf_platform.errors import UserError
from gmf_platform.models.backbones import GroupMixFormer
from gmf_platform.models.heads import ClassificationHead, UPerNet
from gmf_platform.models.norm import BatchNorm
from gmf_platform.optim import parameter_groups, scale_learning_rates


def classifier(variant):
    with torch.device("meta"):
        backbone = GroupMixFormer(variant)
        return nn.Sequential(backbone, ClassificationHead(backbone.channels, 1000))


def names_by_group(model):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        group["name"]: [names[id(parameter)] for parameter in group["params"]]
        for group in parameter_groups(model)
    }


def test_counts_of_the_official_code():
    """set_weight_decay of the authors' optimizer.py, counted on their GroupMixFormer-S."""
    groups = names_by_group(classifier("small"))
    assert {name: len(members) for name, members in groups.items()} == {
        "decay": 363,
        "no_decay": 501,
    }


def test_norms_and_biases_are_the_ones_not_decayed():
    with torch.device("meta"):
        backbone = GroupMixFormer("mobile")
        model = nn.Sequential(backbone, UPerNet(backbone.channels, 5, channels=16))
    norms = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm | BatchNorm)
    }
    biases = {name for name, _ in model.named_parameters() if name.endswith(".bias")}
    groups = names_by_group(model)
    assert set(groups["no_decay"]) == norms | biases
    assert len(groups["decay"]) + len(groups["no_decay"]) == len(list(model.parameters()))


def test_only_the_second_group_sets_its_decay():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(parameter_groups(model), weight_decay=0.01)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]


def test_frozen_parameters_and_empty_groups_are_left_out():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2, bias=False))
    model[0].requires_grad_(False)
    (group,) = parameter_groups(model)
    assert group["name"] == "decay"
    assert group["params"] == [model[1].weight]


def test_a_shared_parameter_is_given_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    counts = [len(group["params"]) for group in parameter_groups(model)]
    assert counts == [1, 2]


def test_all_are_decayed_where_a_recipe_exempts_none():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNorm(4))
    (group,) = parameter_groups(model, decay_norms_and_biases=True)
    assert group["name"] == "decay"
    assert group["params"] == list(model.parameters())
    assert "weight_decay" not in group


class Model(nn.Module):
    """A backbone of 1 + 5 layers and a head."""

    def __init__(self):
        super().__init__()
        self.backbone = GroupMixFormer(
            embedding_dims=(10, 10, 20, 20), depths=(1, 2, 1, 1), mlp_ratios=(1,) * 4
        )
        self.head = nn.Linear(20, 3)


def rates(model, lr=1.0, **options):
    """Learning rate by parameter name, after a step of a scheduler of PyTorch's."""
    optimizer = torch.optim.SGD(parameter_groups(model, **options), lr=lr)
    scale_learning_rates(optimizer.param_groups, 2.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    optimizer.step()
    scheduler.step()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = optimizer.param_groups
    assert len({group["name"] for group in groups}) == len(groups)
    assert groups[0]["lr"] == max(group["lr"] for group in groups)  # the one that is shown
    return {names[id(p)]: group["lr"] for group in groups for p in group["params"]}


def test_layer_decay_reaches_the_rates():
    found = rates(Model(), layer_decay=0.5)
    assert set(found) == {name for name, _ in Model().named_parameters()}
    expected = {
        "head.weight": 1.0,
        "head.bias": 1.0,
        "backbone.groupmixformer_backbone.3.gma_stage.0.mlp.fc1.bias": 2**-1,
        "backbone.patch_embed_layers.3.norm.weight": 2**-1,
        "backbone.groupmixformer_backbone.2.gma_stage.0.att.qkv.weight": 2**-2,
        "backbone.groupmixformer_backbone.1.gma_stage.1.att.qkv.weight": 2**-3,
        "backbone.groupmixformer_backbone.1.gma_stage.0.att.qkv.weight": 2**-4,
        "backbone.patch_embed_layers.1.proj.conv1.weight": 2**-4,
        "backbone.groupmixformer_backbone.0.gma_stage.0.att.qkv.weight": 2**-5,
        "backbone.patch_embed_layers.0.proj.conv1.weight": 2**-6,
        "backbone.conv_stem.proj1.weight": 2**-6,
    }
    assert {name: found[name] for name in expected} == expected


def test_layer_decay_has_the_factors_of_timms():
    """timm's factors, for a network of as many layers: 12 blocks, embedding and head."""
    theirs = param_groups_layer_decay(
        timm.create_model("vit_tiny_patch16_224", num_classes=3), layer_decay=0.75
    )
    with torch.device("meta"):
        model = Model()
        model.backbone = GroupMixFormer("mobile", depths=(3, 3, 4, 2))
        ours = parameter_groups(model, layer_decay=0.75)
    scales = sorted({group["lr_scale"] for group in theirs})
    assert sorted({group["lr_factor"] for group in ours}) == pytest.approx(scales)


def test_rates_of_parts():
    factors = {"backbone": 0.1, "backbone.conv_stem": 0.01, "head.bias": 2}
    found = rates(Model(), lr_factors=factors)
    for name, rate in found.items():
        fits = [prefix for prefix in factors if name.startswith(prefix)]
        assert rate == pytest.approx(factors[max(fits, key=len)] if fits else 1.0)
    assert {round(rate, 6) for rate in found.values()} == {2, 1, 0.1, 0.01}


def test_rates_of_layers_and_parts_multiply():
    found = rates(Model(), lr_factors={"backbone": 0.1}, layer_decay=0.5)
    assert found["backbone.conv_stem.proj1.weight"] == pytest.approx(0.1 * 2**-6)
    assert found["head.weight"] == 1.0


def test_groups_have_names_and_their_own_decay():
    groups = parameter_groups(Model(), lr_factors={"backbone": 0.1}, layer_decay=0.5)
    by_name = {group["name"]: group.get("weight_decay") for group in groups}
    assert by_name["decay"] is None
    assert by_name["backbone/layer_00/no_decay"] == 0
    assert by_name["backbone/layer_05/decay"] is None
    assert len(groups) == 2 * 7


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layer_decay": 0.0}, "layer_decay: 0.0 is not above 0"),
        ({"layer_decay": 1.5}, "layer_decay: 1.5 is not above 0 and at most 1"),
        ({"lr_factors": {"backbone": 0}}, "lr_factors: backbone: 0 is not above 0"),
        (
            {"lr_factors": {"back": 1}},
            "lr_factors: back: .*; the parts of the model are backbone, head",
        ),
    ],
)
def test_wrong_rates_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        parameter_groups(Model(), **options)
