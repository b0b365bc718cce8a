"""Which parameters are decayed."""

from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = ["parameter_groups"]


def parameter_groups(
    model: nn.Module, *, decay_norms_and_biases: bool = False
) -> list[dict[str, Any]]:
    """Split trainable parameters: weights are decayed; norms and biases are not.

    One-dimensional parameters and biases are exempt, as in GroupMixFormer's ImageNet code and
    in Swin's. Each group has a ``name`` for the logs.

    Args:
        model: whose parameters to split.
        decay_norms_and_biases: exempt none, as PVT's recipes; there is one group then.
    """
    groups: Mapping[bool, dict[str, Any]] = {
        True: {"name": "decay", "params": []},
        False: {"name": "no_decay", "params": [], "weight_decay": 0.0},
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_weight = parameter.ndim > 1 and not name.endswith(".bias")
            groups[is_weight or decay_norms_and_biases]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]
