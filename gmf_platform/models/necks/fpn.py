"""Feature pyramid network (Lin et al., arXiv 1612.03144)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FPN"]


class FPN(nn.Module):
    """Maps of equal width, each with what the coarser ones know.

    Lateral 1x1 convolutions, a top-down path by the nearest pixel, 3x3 convolutions on the sums;
    no norms or activations. Computes what mmdetection's FPN does without extra levels.

    Args:
        in_channels: Channels of the backbone's maps, from fine to coarse.
        channels: Channels of every map that comes out.
    """

    def __init__(self, in_channels: Sequence[int], *, channels: int = 256) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(nn.Conv2d(n, channels, 1) for n in in_channels)
        self.fpn_convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels
        )
        self.apply(_init_weights)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Map (B, C_i, H_i, W_i), from fine to coarse, to (B, channels, H_i, W_i)."""
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, features, strict=True)]
        sums = [laterals.pop()]
        for lateral in reversed(laterals):
            sums.insert(0, lateral + F.interpolate(sums[0], lateral.shape[-2:], mode="nearest"))
        return [conv(x) for conv, x in zip(self.fpn_convs, sums, strict=True)]


def _init_weights(module: nn.Module) -> None:
    """As mmdetection's FPN starts: Xavier uniform, biases zero."""
    if isinstance(module, nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]
