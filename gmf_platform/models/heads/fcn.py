"""FCN head (Long et al., arXiv 1411.4038), used as the auxiliary head of segmentation."""

from collections.abc import Sequence

from torch import Tensor, nn

from gmf_platform.errors import UserError
from gmf_platform.models.heads.blocks import ConvNormAct, PixelClassifier
from gmf_platform.ranges import PositiveInt, UnitInterval

__all__ = ["FCNHead"]


class FCNHead(PixelClassifier):
    """3x3 convolutions on one feature map.

    Computes what mmsegmentation's FCNHead does with ``concat_input=False``, with its state dict.

    Args:
        in_channels: Channels of the backbone's maps, from fine to coarse.
        num_classes: Number of classes K.
        index: Which map to use.
        channels: Channels inside the head.
        num_convs: Number of 3x3 convolutions, at least 1.
        dropout: Chance to drop a channel before the last convolution.

    Raises:
        UserError: There is no map of this index.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        index: int = 2,
        channels: PositiveInt = 256,
        num_convs: PositiveInt = 1,
        dropout: UnitInterval = 0.1,
    ) -> None:
        super().__init__(channels, num_classes, dropout)
        last = len(in_channels) - 1
        if index not in range(-last - 1, last + 1):
            raise UserError(f"FCNHead: index {index} is none of the backbone's maps, 0 to {last}")
        self.index = index
        inputs = [in_channels[index]] + [channels] * (num_convs - 1)
        self.convs = nn.Sequential(*(ConvNormAct(n, channels, 3) for n in inputs))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map feature maps (B, C_i, H_i, W_i) to logits (B, K, H_index, W_index)."""
        return self.classify(self.convs(features[self.index]))
