"""A backbone's layers in the order that an image passes them: what is frozen, what learns slower."""

from typing import Protocol, cast, runtime_checkable

from torch import nn

from gmf_platform.errors import UserError

__all__ = ["Layered", "freeze_stages", "layer_numbers", "part_names"]


@runtime_checkable
class Layered(Protocol):
    """A backbone that tells its layers apart."""

    def layers_by_stage(self) -> list[list[list[nn.Module]]]:
        """Modules by layer, layers by stage, in the order of an image's way; the stem is first.

        What is in none of them, as a norm that is new on top of trained weights, counts as part
        of the head: it is not frozen, and learns at the full rate.
        """


def freeze_stages(backbone: nn.Module, count: int) -> list[nn.Module]:
    """Switch off the gradients of the stem and the first stages, and put them in evaluation mode.

    Args:
        backbone: A `Layered` one.
        count: Stages to freeze, the stem with the first; 0 freezes nothing, all of them leaves
            only the head to train.

    Returns:
        The modules that are frozen. They must stay in evaluation mode, so that their norms keep
        their statistics and no path is dropped: call ``eval`` again after each ``train``.

    Raises:
        UserError: If there are fewer stages, or the backbone does not tell its layers.
    """
    if count == 0:
        return []
    stem, *stages = _stages(backbone, "frozen_stages")
    if not 0 <= count <= len(stages):
        raise UserError(
            f"model.frozen_stages: {count} is not from 0 (nothing is frozen) to {len(stages)} "
            "(the whole backbone is: the head alone is trained)"
        )
    frozen = [module for stage in [stem, *stages[:count]] for layer in stage for module in layer]
    for module in frozen:
        module.requires_grad_(False).eval()
    return frozen


def layer_numbers(backbone: nn.Module) -> dict[str, int]:
    """Number of the layer that each parameter belongs to, by the parameter's name.

    Returns:
        From 0, the stem's; parameters in no layer are left out.

    Raises:
        UserError: If the backbone does not tell its layers.
    """
    layers = [layer for stage in _stages(backbone, "layer_decay") for layer in stage]
    numbers = {
        id(parameter): number
        for number, layer in enumerate(layers)
        for module in layer
        for parameter in module.parameters()
    }
    named = backbone.named_parameters()
    return {name: numbers[id(tensor)] for name, tensor in named if id(tensor) in numbers}


def part_names(model: nn.Module) -> dict[str, str]:
    """The part of a model that each trained parameter belongs to, by the parameter's name.

    Parts are ``backbone.stem``, ``backbone.stage1`` and so on, if the backbone tells its layers
    apart, and what else the model holds by name: ``decode_head``, or in joint training the tasks.
    """
    parts: dict[int, str] = {}
    backbone = getattr(model, "backbone", None)
    if isinstance(backbone, Layered):
        for number, stage in enumerate(backbone.layers_by_stage()):
            part = f"backbone.stage{number}" if number else "backbone.stem"
            modules = (module for layer in stage for module in layer)
            parts |= {id(p): part for module in modules for p in module.parameters()}
    return {
        name: parts.get(id(parameter), name.partition(".")[0])
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def _stages(backbone: nn.Module, option: str) -> list[list[list[nn.Module]]]:
    if not isinstance(backbone, Layered):
        raise UserError(
            f"model.{option}: {type(backbone).__name__} does not tell its layers apart: give it a "
            "method layers_by_stage(), or leave the option out"
        )
    return cast(Layered, backbone).layers_by_stage()
