"""Which parameters are decayed, and which learn slower than others."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from gmf_platform.errors import UserError
from gmf_platform.optim.layers import layer_numbers

__all__ = ["parameter_groups", "scale_learning_rates"]


def parameter_groups(
    model: nn.Module,
    *,
    decay_norms_and_biases: bool = False,
    layer_decay: float | None = None,
    lr_factors: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Split trainable parameters by weight decay and by learning rate.

    Weights are decayed; one-dimensional parameters and biases are not, as in GroupMixFormer's
    ImageNet code and in Swin's. Each group has a ``name`` for the logs and an ``lr_factor``, which
    `scale_learning_rates` applies. The group with the largest rate comes first.

    Args:
        model: whose parameters to split; with ``layer_decay``, it has a part ``backbone``.
        decay_norms_and_biases: exempt none from weight decay, as PVT's recipes.
        layer_decay: the rate of a layer of the backbone over that of the next one; the last layer's
            is this times the head's (as in BEiT, Bao et al., arXiv 2106.08254, and in timm).
        lr_factors: factors of the rate by the beginning of the parameters' names, such as
            ``{"backbone": 0.1}``; the longest one that fits counts.

    Raises:
        UserError: a factor is not positive, or belongs to no trainable parameter.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    factors = [_by_part(lr_factors or {}, trainable), _by_layer(model, layer_decay)]
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in trainable.items():
        decays = decay_norms_and_biases or (parameter.ndim > 1 and not name.endswith(".bias"))
        found = [labels[name] for labels in factors if name in labels]
        group: dict[str, Any] = {
            "name": "/".join([*(label for label, _ in found), "decay" if decays else "no_decay"]),
            "lr_factor": math.prod(factor for _, factor in found),
            "params": [],
        }
        group |= {} if decays else {"weight_decay": 0.0}
        groups.setdefault(group["name"], group)["params"].append(parameter)
    return sorted(groups.values(), key=lambda g: (-g["lr_factor"], "weight_decay" in g))


def scale_learning_rates(groups: list[dict[str, Any]], factor: float = 1.0) -> None:
    """Multiply the rate of each group of an optimiser by ``factor`` and by its own ``lr_factor``.

    Call it before a scheduler is made: PyTorch's schedulers take the rates they find as base
    rates, and know of no factor beside ``lr`` itself.
    """
    for group in groups:
        group["lr"] *= factor * group.get("lr_factor", 1.0)


def _by_layer(model: nn.Module, decay: float | None) -> dict[str, tuple[str, float]]:
    """Label and factor of each parameter in a layer, by name; factors fall towards the stem."""
    if decay is None:
        return {}
    if not 0 < decay <= 1:
        raise UserError(
            f"model.layer_decay: {decay} is not above 0 and at most 1: 0.65 to 0.9 are usual, "
            "null is the same rate for all layers"
        )
    numbers = layer_numbers(model.get_submodule("backbone"))
    head = max(numbers.values()) + 1
    return {
        f"backbone.{name}": (f"layer_{number:02d}", decay ** (head - number))
        for name, number in numbers.items()
    }


def _by_part(factors: Mapping[str, float], names: Collection[str]) -> dict[str, tuple[str, float]]:
    """Label and factor of each parameter whose name begins as one of the factors' keys."""
    found: dict[str, tuple[str, float]] = {}
    for prefix, factor in sorted(factors.items(), key=lambda item: len(item[0])):
        if factor <= 0:
            raise UserError(
                f"model.lr_factors: {prefix}: {factor} is not above 0 (model.frozen_stages "
                "freezes stages of the backbone)"
            )
        inside = [name for name in names if name.startswith(f"{prefix}.") or name == prefix]
        if not inside:
            parts = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
            raise UserError(
                f"model.lr_factors: {prefix}: no trainable parameter's name begins so; the parts "
                f"of the model are {parts}"
            )
        found |= dict.fromkeys(inside, (prefix, factor))
    return found
