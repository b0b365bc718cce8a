"""What the segmentation heads are built of."""

import torch.nn.functional as F
from torch import Tensor, nn

from gmf_platform.errors import UserError, check_least
from gmf_platform.models.norm import BatchNorm

__all__ = ["ConvNormAct", "PixelClassifier", "resize_to"]


class ConvNormAct(nn.Module):
    """Convolution without bias, batch norm, ReLU; keys ``conv`` and ``bn``.

    Starts as mmcv's ConvModule does: He normal over the fan-out.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        kernel_size: Odd; the border is padded so that the size stays.
    """

    def __init__(self, inputs: int, outputs: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = BatchNorm(outputs)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H, W)."""
        return F.relu(self.bn(self.conv(x)))


class PixelClassifier(nn.Module):
    """Base of heads that end in dropout of channels and a 1x1 convolution ``conv_seg``.

    The convolution starts from a normal distribution of std 0.01, as in mmsegmentation.

    Args:
        channels: Channels in.
        num_classes: Number of classes K.
        dropout: Chance to drop a channel in training.

    Raises:
        UserError: There are no channels, or the chance is none.
    """

    def __init__(self, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        name = type(self).__name__
        check_least(f"{name}: channels", channels)
        if not 0 <= dropout <= 1:
            raise UserError(f"{name}: dropout {dropout} is no chance from 0 to 1")
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        nn.init.zeros_(self.conv_seg.bias)  # type: ignore[arg-type]

    def classify(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to logits (B, K, H, W)."""
        return self.conv_seg(self.dropout(x))


def resize_to(x: Tensor, target: Tensor) -> Tensor:
    """Resize (B, C, H, W) bilinearly to the height and width of ``target``, corners not aligned."""
    return F.interpolate(x, target.shape[-2:], mode="bilinear", align_corners=False)
