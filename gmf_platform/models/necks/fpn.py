"""Feature pyramid network (Lin et al., arXiv 1612.03144)."""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from gmf_platform.ranges import PositiveInt

__all__ = ["FPN"]


class FPN(nn.Module):
    """Maps of equal width, each with what the coarser ones know.

    Lateral 1x1 convolutions, a top-down path by the nearest pixel, 3x3 convolutions on the sums;
    no norms or activations. Computes what mmdetection's FPN does.

    Args:
        in_channels: Channels of the backbone's maps, from fine to coarse.
        channels: Channels of every map that comes out.
        extra: Coarser maps behind those of the backbone. ``"pool"``: one, every other pixel of
            the coarsest (for Mask R-CNN). ``"convs"``: two, by 3x3 convolutions of stride 2, the
            first on the backbone's coarsest map (for RetinaNet; ``add_extra_convs="on_input"``).
        relu_between: ReLU between the two convolutions, as in RetinaNet's paper and torchvision;
            mmdetection has none by default.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        *,
        channels: PositiveInt = 256,
        extra: Literal["none", "pool", "convs"] = "none",
        relu_between: bool = False,
    ) -> None:
        super().__init__()
        self.extra, self.relu_between = extra, relu_between
        self.lateral_convs = nn.ModuleList(nn.Conv2d(n, channels, 1) for n in in_channels)
        self.fpn_convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels
        )
        if extra == "convs":
            self.extra_convs = nn.ModuleList(
                nn.Conv2d(n, channels, 3, stride=2, padding=1) for n in (in_channels[-1], channels)
            )
        self.apply(_init_weights)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Map (B, C_i, H_i, W_i), from fine to coarse, to (B, channels, H_i, W_i) and extra maps.

        An extra map has half the rows and columns of the one before it, rounded up.
        """
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, features, strict=True)]
        sums = [laterals.pop()]
        for lateral in reversed(laterals):
            sums.insert(0, lateral + F.interpolate(sums[0], lateral.shape[-2:], mode="nearest"))
        maps = [conv(x) for conv, x in zip(self.fpn_convs, sums, strict=True)]
        return maps + self._extra_maps(features[-1], maps[-1])

    def _extra_maps(self, coarsest_input: Tensor, coarsest: Tensor) -> list[Tensor]:
        match self.extra:
            case "none":
                return []
            case "pool":
                return [coarsest[:, :, ::2, ::2]]
            case "convs":
                first = self.extra_convs[0](coarsest_input)
                second = self.extra_convs[1](F.relu(first) if self.relu_between else first)
                return [first, second]


def _init_weights(module: nn.Module) -> None:
    """As mmdetection's FPN starts: Xavier uniform, biases zero."""
    if isinstance(module, nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]
