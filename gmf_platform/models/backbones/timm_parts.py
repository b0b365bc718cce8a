"""What is done to a network of timm's to make it a part of ours: its batch norms, its layers."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from gmf_platform.models.norm import BatchNorm

__all__ = ["exchange_batch_norms", "layers_by_stage"]


class _BatchNormAct(BatchNorm):
    """Batch norm with the dropout and the activation that timm keeps inside it."""

    def __init__(self, old: BatchNormAct2d, **settings: Any) -> None:
        super().__init__(old.num_features, **settings)
        self.drop, self.act = old.drop, old.act

    def forward(self, *args: Any, **options: Any) -> Tensor:
        return self.act(self.drop(super().forward(*args, **options)))


def exchange_batch_norms(model: nn.Module) -> None:
    """Put our batch norm, with the same state-dict keys and values, in the place of PyTorch's."""
    for name, old in list(model.named_modules()):
        if not isinstance(old, nn.modules.batchnorm._BatchNorm) or isinstance(old, BatchNorm):
            continue
        settings: dict[str, Any] = {"eps": old.eps, "momentum": old.momentum}
        if isinstance(old, BatchNormAct2d):
            new: BatchNorm = _BatchNormAct(old, **settings)
        else:
            new = BatchNorm(old.num_features, **settings)
        new = new.to(old.weight.device)
        new.load_state_dict(old.state_dict())
        model.set_submodule(name, new)


def layers_by_stage(model: nn.Module, stages: Sequence[str]) -> list[list[list[nn.Module]]]:
    """Modules by layer, layers by stage, the stem first, from the parameters in their order.

    A layer is a block; what lies between two blocks belongs to the later one, and what is behind
    the last block of a stage to that.

    Args:
        model: Whose parameters stand in the order of an image's way.
        stages: Names of the modules that end the stages.
    """
    names = [name for name, _ in model.named_parameters()]
    inside = [[i for i, name in enumerate(names) if name.startswith(f"{s}.")] for s in stages]
    ends = [places[-1] for places in inside]
    found: list[list[str]] = [[] for _ in (None, *stages)]
    for i, name in enumerate(names):
        in_stem = i < inside[0][0]
        found[0 if in_stem else 1 + min(bisect_left(ends, i), len(ends) - 1)].append(name)
    depth = stages[0].count(".") + 1
    stem, *others = found
    return [[[_owner(model, name) for name in stem]], *(_layers(model, s, depth) for s in others)]


def _layers(model: nn.Module, names: Sequence[str], depth: int) -> list[list[nn.Module]]:
    """Modules by layer of one stage, whose modules' names have ``depth`` parts."""
    layers: list[list[nn.Module]] = [[]]
    before = None
    for name in names:
        block = _block(model, name.split("."), depth)
        if block is None:
            layers[-1].append(_owner(model, name))
        elif block != before:
            if before is not None:
                layers.append([])
            layers[-1].append(model.get_submodule(block))
            before = block
    return layers


def _block(model: nn.Module, parts: Sequence[str], depth: int) -> str | None:
    """Name of the block that a parameter belongs to; None for what is in no block."""
    if parts[depth] == "blocks":
        return ".".join(parts[: depth + 2])
    is_row = isinstance(model.get_submodule(".".join(parts[:depth])), nn.Sequential)
    return ".".join(parts[: depth + 1]) if is_row else None


def _owner(model: nn.Module, name: str) -> nn.Module:
    """The module that holds a parameter; one made for it alone if that is the whole model."""
    path, _, own = name.rpartition(".")
    return model.get_submodule(path) if path else nn.ParameterList([getattr(model, own)])
