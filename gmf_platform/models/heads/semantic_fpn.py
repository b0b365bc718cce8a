"""Semantic FPN: the segmentation branch of Panoptic FPN (Kirillov et al., arXiv 1901.02446)."""

from collections.abc import Sequence

from torch import Tensor, nn

from gmf_platform.models.heads.blocks import ConvNormAct, PixelClassifier, resize_to
from gmf_platform.models.necks.fpn import FPN
from gmf_platform.ranges import PositiveInt, UnitInterval

__all__ = ["SemanticFPN", "SemanticFPNHead"]


class SemanticFPNHead(PixelClassifier):
    """Each map is convolved and doubled in size until it is as large as the finest; then the sum.

    Computes what mmsegmentation's FPNHead does for maps of strides 4, 8, 16, 32, ...
    (``align_corners=False``), with its state dict.

    Args:
        in_channels: Channels of the maps, from fine to coarse, each half as large as the one
            before.
        num_classes: Number of classes K.
        channels: Channels inside the head.
        dropout: Chance to drop a channel before the last convolution.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        channels: PositiveInt = 128,
        dropout: UnitInterval = 0.1,
    ) -> None:
        super().__init__(channels, num_classes, dropout)
        self.scale_heads = nn.ModuleList(
            _branch(n, channels, level) for level, n in enumerate(in_channels)
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map feature maps (B, C_i, H_i, W_i), fine to coarse, to logits (B, K, H_0, W_0)."""
        finest, *others = (branch(x) for branch, x in zip(self.scale_heads, features, strict=True))
        for other in others:
            # Doubled ceil(H / s) rows can be a few more than the finest map has.
            finest = finest + resize_to(other, finest)
        return self.classify(finest)


def _branch(inputs: int, channels: int, level: int) -> nn.Sequential:
    """Convolutions with ``level`` doublings; the finest level has one convolution and none."""
    layers: list[nn.Module] = []
    for i in range(max(1, level)):
        layers.append(ConvNormAct(inputs if i == 0 else channels, channels, 3))
        if level:
            layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
    return nn.Sequential(*layers)


class SemanticFPN(nn.Module):
    """FPN and Semantic FPN head in one: a decode head for a backbone's maps.

    Args:
        in_channels: Channels of the backbone's maps, from fine to coarse.
        num_classes: Number of classes K.
        fpn_channels: Channels of the feature pyramid.
        channels: Channels inside the head.
        dropout: Chance to drop a channel before the last convolution.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        fpn_channels: PositiveInt = 256,
        channels: PositiveInt = 128,
        dropout: UnitInterval = 0.1,
    ) -> None:
        super().__init__()
        self.neck = FPN(in_channels, channels=fpn_channels)
        self.head = SemanticFPNHead(
            [fpn_channels] * len(in_channels), num_classes, channels=channels, dropout=dropout
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map feature maps (B, C_i, H_i, W_i), fine to coarse, to logits (B, K, H_0, W_0)."""
        logits: Tensor = self.head(self.neck(features))
        return logits
