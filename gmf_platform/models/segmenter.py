"""A backbone with its segmentation heads."""

from typing import NamedTuple

from torch import Tensor, nn

from gmf_platform.models.normalize import Normalize

__all__ = ["Segmenter", "SegmenterOutput"]


class SegmenterOutput(NamedTuple):
    """Logits of the heads.

    Attributes:
        logits: (B, K, h, w) of the decode head.
        auxiliary: (B, K, h', w') of the auxiliary head; None in evaluation, which skips it.
    """

    logits: Tensor
    auxiliary: Tensor | None


class Segmenter(nn.Module):
    """Images to class logits.

    Args:
        backbone: images (B, 3, H, W) -> list of feature maps.
        decode_head: feature maps -> logits.
        auxiliary_head: a second head that helps in training alone; None for none.
    """

    def __init__(
        self, backbone: nn.Module, decode_head: nn.Module, auxiliary_head: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.normalize = Normalize()
        self.backbone = backbone
        self.decode_head = decode_head
        self.auxiliary_head = auxiliary_head

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> SegmenterOutput:
        """Logits at the heads' own resolution.

        Args:
            images: uint8 (B, 3, H, W) RGB.
            sizes: (B, 2) heights and widths without padding; None where nothing is padded.
        """
        features = self.backbone(self.normalize(images, sizes))
        logits = self.decode_head(features)
        if self.auxiliary_head is None or not self.training:
            return SegmenterOutput(logits, None)
        return SegmenterOutput(logits, self.auxiliary_head(features))
