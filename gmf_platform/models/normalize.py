"""Pixels to network input, on the device."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Normalize"]

# Of ImageNet's training images in RGB, 0..255: what every reference recipe normalises with.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


class Normalize(nn.Module):
    """uint8 images to normalised floats, with the padding set to zero afterwards.

    Args:
        mean: of the three channels, RGB, 0..255.
        std: likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, *, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
    ) -> None:
        super().__init__()
        # Constants of the recipe, not of the run: they stay out of checkpoints.
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Normalise a batch.

        Args:
            images: uint8 (B, 3, H, W) RGB.
            sizes: (B, 2) height and width of each image inside the batch, at the upper left;
                None: no image is padded.

        Returns:
            float32 (B, 3, H, W) in the memory format of ``images``.
        """
        normal = (images.float() - self.mean) / self.std
        return normal if sizes is None else normal * inside(sizes, images.shape[-2:])


def inside(sizes: Tensor, shape: Sequence[int]) -> Tensor:
    """Mask (B, 1, H, W) of the pixels that belong to the images, not to their padding."""
    rows = torch.arange(shape[0], device=sizes.device) < sizes[:, :1]
    columns = torch.arange(shape[1], device=sizes.device) < sizes[:, 1:]
    return (rows[:, :, None] & columns[:, None, :])[:, None]
