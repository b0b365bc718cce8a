"""The head of image classification."""

from collections.abc import Sequence

from torch import Tensor, nn

from gmf_platform.models.norm import BatchNorm

__all__ = ["ClassificationHead"]


class ClassificationHead(nn.Module):
    """Batch norm, mean over the image, linear layer, on the last feature map.

    The state dict has the keys ``norm4.*`` and ``head.*`` of GroupMixFormer's checkpoints.

    Args:
        in_channels: Channels of the backbone's maps; the last is used.
        num_classes: Number of classes K.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.norm4 = BatchNorm(in_channels[-1])
        self.head = nn.Linear(in_channels[-1], num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map feature maps (B, C_i, H_i, W_i) to logits (B, K)."""
        return self.head(self.norm4(features[-1]).mean((2, 3)))
