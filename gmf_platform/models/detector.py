"""A backbone with a detection head."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from gmf_platform.models.heads.detection import Detections
from gmf_platform.models.normalize import Normalize

__all__ = ["Detector"]


class Detector(nn.Module):
    """Images to losses in training, to detections otherwise.

    Everything that touches a parameter happens inside ``forward``, the losses included, which
    keeps sharded training right. Every parameter gets a gradient from every batch.

    Args:
        backbone: images (B, 3, H, W) -> feature maps of strides 4, 8, 16, 32.
        head: feature maps, sizes, targets -> losses or detections; holds its own neck.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.normalize = Normalize()
        self.backbone = backbone
        self.head = head

    def forward(
        self,
        images: Tensor,
        sizes: Tensor,
        targets: Sequence[Mapping[str, Any]] | None = None,
    ) -> dict[str, Tensor] | list[Detections]:
        """Learn from a batch, or look at it.

        Args:
            images: uint8 (B, 3, H, W) RGB; H and W are multiples of 32 from 64.
            sizes: (B, 2) heights and widths without padding.
            targets: of each image ``boxes`` float32 (N, 4) as x1, y1, x2, y2 in pixels, ``labels``
                int64 (N,) 0..K-1, ``masks`` uint8 (N, H, W) for heads with masks, and ``seed``,
                an int that its regions are drawn with. N may be 0. Crowd regions play no part.

        Returns:
            Scalar losses by name, in training with targets; else the detections of each image.
        """
        features = self.backbone(self.normalize(images, sizes))
        outputs: dict[str, Tensor] | list[Detections] = self.head(features, sizes, targets)
        return outputs

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the backbone in place; arguments are those of ``torch.compile``.

        The head handles as many objects and regions as there are, so that it would be compiled
        over and over again.
        """
        self.backbone.compile(*args, **kwargs)
