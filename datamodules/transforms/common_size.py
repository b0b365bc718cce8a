"""One size for the images of several tasks, so that a backbone need see each image only once."""

from dataclasses import dataclass

import cv2
import numpy as np

from datamodules.images import Image8
from gmf_platform.errors import UserError

__all__ = ["CommonSize"]

_MULTIPLE = 32
"""The last stride of the backbones: images of such sides are padded by no task."""


@dataclass(frozen=True)
class CommonSize:
    """Resizes an image to fit into two sides, and each side to the nearest multiple of 32.

    So a side may be 16 pixels from where the image's proportion has it; it is at least 64. In
    return nothing is padded, and all tasks see the same pixels: a detector pads to multiples of
    32, a classifier cannot be padded at all.

    Args:
        long: long side at most before it is rounded, pixels.
        short: short side at most before it is rounded, pixels.

    Raises:
        UserError: a side is below 64.
    """

    long: int
    short: int

    def __post_init__(self) -> None:
        if min(self.long, self.short) < 2 * _MULTIPLE:
            raise UserError(
                f"data.joint_size: {self.long} x {self.short} is too small: backbones take images "
                f"of {2 * _MULTIPLE} pixels and more"
            )

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that an image of this size is brought to."""
        long, short = max(self.long, self.short), min(self.long, self.short)
        factor = min(long / max(height, width), short / min(height, width))
        return _whole(height * factor), _whole(width * factor)

    def __call__(self, image: Image8) -> Image8:
        """Resize an image (H, W, 3) by OpenCV's bilinear interpolation without antialiasing."""
        height, width = self.size(image.shape[0], image.shape[1])
        if (height, width) == image.shape[:2]:
            return image
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        return resized.astype(np.uint8, copy=False)


def _whole(side: float) -> int:
    return max(2, int(side / _MULTIPLE + 0.5)) * _MULTIPLE
