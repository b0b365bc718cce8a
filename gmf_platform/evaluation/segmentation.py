"""From a head's logits to labels on the original image."""

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Size", "View", "labels_at_original_size", "labels_by_mean_probability", "sampled_loss"]

# Logits of all classes at the size of a large photograph take gigabytes; classes are resized in
# portions of at most this many values, and the best so far is kept.
_VALUES_AT_ONCE = 2**26

_POINTS = 128

Size = tuple[int, int]
"""Height and width in pixels."""


class View(NamedTuple):
    """What a network says of one version of an image.

    Attributes:
        logits: (K, h, w).
        padded_size: of the network's input, padding included, which the logits stand for.
        size: of the version inside it, at the upper left.
        flipped: the version was mirrored, left to right.
    """

    logits: Tensor
    padded_size: Size
    size: Size
    flipped: bool = False


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
    view = View(logits, padded_size, size)
    parts = logits.split(_portion([view], original_size))
    return _best(_resized(view, part, original_size) for part in parts)


def labels_by_mean_probability(views: Sequence[View], original_size: Size) -> Tensor:
    """Label of each pixel that the versions of an image together find most likely.

    As mmsegmentation's test-time augmentation does it (aug_test of its releases 0.x, SegTTAModel
    of 1.x): the logits of each version are brought to the original size and mirrored back, and
    the mean of their softmax decides. The classes are resized in portions, once for the softmax's
    denominators and once for the probabilities, so that only one value a version and pixel is
    held at original size.

    Args:
        views: versions of one image, at least one.
        original_size: height and width of the original image.

    Returns:
        uint8 labels (height, width), for up to 256 classes.
    """
    portion = _portion(views, original_size)
    split = [view.logits.split(portion) for view in views]
    denominators = [
        _log_sum_exp(_resized(view, part, original_size) for part in parts)
        for view, parts in zip(views, split, strict=True)
    ]

    def summed(parts: Sequence[Tensor]) -> Tensor:
        """Probabilities of a portion of the classes, over the versions; as good as their mean."""
        terms = (
            (_resized(view, part, original_size) - denominator).exp_()
            for view, part, denominator in zip(views, parts, denominators, strict=True)
        )
        return reduce(torch.add, terms)

    return _best(summed(parts) for parts in zip(*split, strict=True))


def sampled_loss(view: View, truth: Tensor) -> Tensor:
    """Mean cross-entropy at points evenly spaced over an image, 128 in each direction.

    Of all pixels it would take as long as the labels themselves, and the memory of all logits.

    Args:
        view: of the image.
        truth: labels (height, width) of the original; 255 does not count.

    Returns:
        float32 (); NaN where nothing counts.
    """
    places = (torch.arange(_POINTS, device=truth.device) + 0.5) / _POINTS
    rows, columns = ((places * side).long() for side in truth.shape)
    height, width = (
        cells * inside / padded
        for cells, inside, padded in zip(
            view.logits.shape[1:], view.size, view.padded_size, strict=True
        )
    )
    logits = view.logits[:, (places * height).long()][:, :, (places * width).long()]
    targets = truth[rows][:, columns].long()
    return F.cross_entropy(logits[None].float(), targets[None], ignore_index=255)


def _portion(views: Sequence[View], original_size: Size) -> int:
    """How many classes to resize at once."""
    largest = max(_area(size) for view in views for size in (view.padded_size, original_size))
    return max(1, _VALUES_AT_ONCE // largest)


def _best(portions: Iterable[Tensor]) -> Tensor:
    """Class of the highest score, uint8 (H, W), from scores (k, H, W) of portions of classes."""
    portions = iter(portions)
    scores = next(portions)
    best, labels = scores.max(dim=0)
    seen = len(scores)
    for scores in portions:
        value, index = scores.max(dim=0)
        labels = torch.where(value > best, index + seen, labels)
        best = torch.maximum(value, best)
        seen += len(scores)
    return labels.to(torch.uint8)


def _log_sum_exp(portions: Iterable[Tensor]) -> Tensor:
    """Over all classes (H, W), from logits (k, H, W) of portions of them."""
    return torch.stack([logits.logsumexp(dim=0) for logits in portions]).logsumexp(dim=0)


def _area(size: Size) -> int:
    return size[0] * size[1]


def _resized(view: View, logits: Tensor, original_size: Size) -> Tensor:
    """Some classes (k, h, w) of a view to (k, *original_size), mirrored back."""
    part = logits[None].float()
    if part.shape[-2:] != view.padded_size:
        part = F.interpolate(part, size=view.padded_size, mode="bilinear", align_corners=False)
    part = part[..., : view.size[0], : view.size[1]]
    if view.size != original_size:
        part = F.interpolate(part, size=original_size, mode="bilinear", align_corners=False)
    return part[0].flip(-1) if view.flipped else part[0]
