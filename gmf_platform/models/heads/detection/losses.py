"""Sums of losses, and what they are divided by over all processes."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from gmf_platform.models.heads.detection.matching import IGNORED

__all__ = ["LossSum", "focal_loss", "means"]


class LossSum(NamedTuple):
    """A loss summed over this process's batch, not yet divided.

    Attributes:
        total: a scalar, in float32 at least.
        divisor: a scalar, such as the number of boxes.
    """

    total: Tensor
    divisor: Tensor

    @classmethod
    def of(cls, total: Tensor, divisor: int) -> "LossSum":
        """With a divisor that the host knows."""
        return cls(total, torch.full_like(total.detach(), divisor))

    def weighted(self, weight: float) -> "LossSum":
        """The same with another weight in the sum of all losses."""
        return LossSum(self.total * weight, self.divisor)


def means(sums: Mapping[str, LossSum]) -> dict[str, Tensor]:
    """Divide losses by the means of their divisors over processes, which sum up to 1 at least.

    The mean over processes, which is what data-parallel training takes of gradients, is then the
    loss that one process computes of the whole batch. One collective, whatever the number of
    losses; every process must have the same ones.
    """
    divisors = torch.stack([part.divisor.float() for part in sums.values()])
    processes = 1
    if dist.is_available() and dist.is_initialized():
        processes = dist.get_world_size()
        dist.all_reduce(divisors)
    factors = processes / divisors.clamp(min=1)
    return {
        name: part.total * factor
        for (name, part), factor in zip(sums.items(), factors, strict=True)
    }


def focal_loss(logits: Tensor, labels: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Focal loss of each class against all others (Lin et al., arXiv 1708.02002), eq. 5.

    torchvision's ``sigmoid_focal_loss`` of one-hot targets, with a third of its memory: all
    classes are first taken as absent, which is right for all but one in 80.

    Args:
        logits: (B, A, K).
        labels: (B, A) classes 0..K-1, `NEGATIVE` for none of them, `IGNORED` adds nothing.
        alpha: weight of a class that is present; the others have 1 - alpha.
        gamma: how much less a well-classified box counts.

    Returns:
        Sums of the images' losses, (B,).
    """

    def absent(x: Tensor) -> Tensor:
        return (1 - alpha) * x.sigmoid() ** gamma * F.softplus(x)

    def present(x: Tensor) -> Tensor:
        return alpha * (-x).sigmoid() ** gamma * F.softplus(-x)

    sums = (absent(logits).sum(2) * (labels != IGNORED)).sum(1)
    images, boxes = (labels >= 0).nonzero(as_tuple=True)
    own = logits[images, boxes, labels[images, boxes]]
    return sums.index_add(0, images, present(own) - absent(own))
