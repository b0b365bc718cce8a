"""From a head's logits to labels on the original image."""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["labels_at_original_size"]

# Logits of all classes at the size of a large photograph take gigabytes; classes are resized in
# portions of at most this many values, and the best so far is kept.
_VALUES_AT_ONCE = 2**26


Size = tuple[int, int]


def labels_at_original_size(
    logits: Tensor, *, padded_size: Size, size: Size, original_size: Size
) -> Tensor:
    """Most likely label of each pixel of the original image.

    As mmsegmentation does it: logits are resized to the network's input, padding is cut off,
    and the rest is resized to the original image (bilinear, corners not aligned) before the
    maximum is taken.

    Args:
        logits: (K, h, w) of one image.
        padded_size: height and width of the network's input, padding included.
        size: height and width of the image inside it, at the upper left.
        original_size: height and width of the original image.

    Returns:
        uint8 labels (height, width), for up to 256 classes.
    """
    portion = max(1, _VALUES_AT_ONCE // max(_area(original_size), _area(padded_size)))
    parts = logits.split(portion)
    best, labels = _resized(parts[0], padded_size, size, original_size).max(dim=0)
    for number, part in enumerate(parts[1:], start=1):
        value, index = _resized(part, padded_size, size, original_size).max(dim=0)
        labels = torch.where(value > best, index + number * portion, labels)
        best = torch.maximum(value, best)
    return labels.to(torch.uint8)


def _area(size: Size) -> int:
    return size[0] * size[1]


def _resized(logits: Tensor, padded_size: Size, size: Size, original_size: Size) -> Tensor:
    """(k, h, w) to (k, *original_size)."""
    part = logits[None].float()
    if part.shape[-2:] != padded_size:
        part = F.interpolate(part, size=padded_size, mode="bilinear", align_corners=False)
    part = part[..., : size[0], : size[1]]
    if size != original_size:
        part = F.interpolate(part, size=original_size, mode="bilinear", align_corners=False)
    return part[0]
