"""Losses between logits and label pictures."""

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CrossEntropy"]


class CrossEntropy(nn.Module):
    """Cross-entropy over all pixels at the size of the labels.

    The sum is divided by the number of all pixels, ignored ones included, as mmsegmentation
    does by default (``avg_non_ignore=False``). The divisor is then the same on every process,
    which makes many processes equal to one.

    Args:
        ignore_index: label of the pixels that add nothing.
    """

    def __init__(self, *, ignore_index: int = 255) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of a batch.

        Args:
            logits: (B, K, h, w), resized to the labels (bilinear, corners not aligned).
            labels: (B, H, W) of any integer type.

        Returns:
            A scalar.
        """
        resized = F.interpolate(
            logits, size=labels.shape[-2:], mode="bilinear", align_corners=False
        )
        total = F.cross_entropy(
            resized.float(), labels.long(), ignore_index=self.ignore_index, reduction="sum"
        )
        return total / labels.numel()
