"""Boxes as x1, y1, x2, y2 in pixels, and what a network says of them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["BoxCoder", "clip_boxes", "full_precision"]

# exp() of more makes boxes of no use: of R-CNN's authors (Detectron, `BBOX_XFORM_CLIP`), and the
# same in mmdetection and torchvision.
MAX_LOG_RATIO = math.log(1000 / 16)


@dataclass(frozen=True)
class BoxCoder:
    """Boxes relative to others: shift over their size and logarithm of the ratio of the sizes.

    Girshick et al., R-CNN (arXiv 1311.2524), equations 1 to 10 of appendix C; mmdetection's
    DeltaXYWHBBoxCoder, and torchvision's BoxCoder with the inverse of ``stds`` as weights.

    Args:
        stds: what the four numbers dx, dy, dw, dh are divided by.
    """

    stds: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)

    def encode(self, boxes: Tensor, truths: Tensor) -> Tensor:
        """Deltas (..., 4) that lead from ``boxes`` (..., 4) to ``truths`` (..., 4)."""
        centre, size = _centre_and_size(boxes)
        wanted_centre, wanted_size = _centre_and_size(truths)
        deltas = torch.cat([(wanted_centre - centre) / size, (wanted_size / size).log()], dim=-1)
        return deltas / deltas.new_tensor(self.stds)

    def decode(self, boxes: Tensor, deltas: Tensor) -> Tensor:
        """Boxes (..., 4) that ``deltas`` (..., 4) lead to from ``boxes`` (..., 4)."""
        centre, size = _centre_and_size(boxes)
        shift, ratio = (deltas * deltas.new_tensor(self.stds)).split(2, dim=-1)
        centre = centre + shift * size
        half = size * ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() / 2
        return torch.cat([centre - half, centre + half], dim=-1)


def _centre_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    upper_left, lower_right = boxes.split(2, dim=-1)
    size = lower_right - upper_left
    return upper_left + size / 2, size


def clip_boxes(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Cut boxes (..., 4) to images of ``sizes`` (..., 2), height and width, which broadcast."""
    limits = sizes.flip(-1).to(boxes.dtype).repeat(*[1] * (sizes.ndim - 1), 2)
    return torch.minimum(boxes.clamp(min=0), limits)


def full_precision(x: Tensor) -> Tensor:
    """``x`` in float32 at least: boxes and losses need it, whatever the network computes in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
