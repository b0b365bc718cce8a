"""UPerNet: unified perceptual parsing (Xiao et al., arXiv 1807.10221)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gmf_platform.models.heads.blocks import ConvNormAct, PixelClassifier, resize_to
from gmf_platform.ranges import PositiveInt, UnitInterval

__all__ = ["UPerNet"]


class UPerNet(PixelClassifier):
    """Pyramid pooling on the last map, then a feature pyramid, all fused at stride 4.

    Computes what mmsegmentation's UPerHead does (``align_corners=False``), with its state dict.

    Args:
        in_channels: Channels of the backbone's maps, from fine to coarse.
        num_classes: Number of classes K.
        channels: Channels inside the head.
        pool_scales: Sides of the grids that the last map is pooled to. In training, a grid of
            one cell needs a batch of more than one image for its norm.
        dropout: Chance to drop a channel before the last convolution.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        channels: PositiveInt = 512,
        pool_scales: Sequence[PositiveInt] = (1, 2, 3, 6),
        dropout: UnitInterval = 0.1,
    ) -> None:
        super().__init__(channels, num_classes, dropout)
        *fine, coarsest = in_channels
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvNormAct(coarsest, channels, 1))
            for scale in pool_scales
        )
        self.bottleneck = ConvNormAct(coarsest + len(pool_scales) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(ConvNormAct(n, channels, 1) for n in fine)
        self.fpn_convs = nn.ModuleList(ConvNormAct(channels, channels, 3) for _ in fine)
        self.fpn_bottleneck = ConvNormAct(len(in_channels) * channels, channels, 3)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Segment.

        Args:
            features: The backbone's maps (B, C_i, H_i, W_i), from fine to coarse.

        Returns:
            Logits (B, K, H_0, W_0), at the size of the finest map.
        """
        *fine, coarsest = features
        coarse = self._pool_pyramid(coarsest)
        pyramid = [coarse]
        for i in reversed(range(len(fine))):
            lateral = self.lateral_convs[i](fine[i])
            coarse = lateral + resize_to(coarse, lateral)
            pyramid.insert(0, self.fpn_convs[i](coarse))
        fused = torch.cat([resize_to(level, pyramid[0]) for level in pyramid], dim=1)
        return self.classify(self.fpn_bottleneck(fused))

    def _pool_pyramid(self, x: Tensor) -> Tensor:
        pooled = [resize_to(pool(x), x) for pool in self.psp_modules]
        return self.bottleneck(torch.cat([x, *pooled], dim=1))
