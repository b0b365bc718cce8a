"""Which parameters are decayed, by count and by name."""

import torch
from torch import nn

from gmf_platform.models.backbones import GroupMixFormer
from gmf_platform.models.heads import ClassificationHead, UPerNet
from gmf_platform.models.norm import BatchNorm
from gmf_platform.optim import parameter_groups


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
