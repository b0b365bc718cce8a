"""Multiply-adds of a forward pass, counted on tensors without memory."""

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["multiply_adds", "on_meta"]


def on_meta(model: nn.Module) -> nn.Module:
    """A copy of a model on torch's meta device: it has shapes, and takes no memory or time."""
    copies: dict[int, Any] = {id(x): x.detach().to("meta") for x in model.buffers()}
    for weight in model.parameters():
        copies[id(weight)] = nn.Parameter(weight.detach().to("meta"), weight.requires_grad)
    return deepcopy(model, copies)  # takes these in place of copies of its own


def multiply_adds(model: nn.Module, size: tuple[int, int], *, part: str = "") -> int:
    """Multiply-adds of an image's forward pass in evaluation, which papers call its FLOPs.

    Args:
        model: takes uint8 images (N, 3, H, W); it is left as it is.
        size: height and width, pixels.
        part: count the submodule of this name alone, which takes float images.
    """
    counted = on_meta(model).eval().get_submodule(part)
    kind = torch.float32 if part else torch.uint8
    images = torch.zeros(1, 3, *size, dtype=kind, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        counted(images)
    return counter.get_total_flops() // 2
