"""The boxes and shapes of COCO annotations, checked."""

import math
from array import array
from collections.abc import Mapping
from reprlib import repr as short
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

__all__ = ["WrongEntry", "clipped_box", "compressed_runs", "polygon", "run_lengths", "whole"]


class WrongEntry(Exception):
    """What is wrong with one entry of an annotation file, to be said behind its id."""


def whole(record: Mapping[str, Any], key: str, *, bits: int = 64) -> int:
    """A whole number of an entry.

    Args:
        record: the entry.
        key: of the number.
        bits: that the number, which has a sign, is kept in.

    Raises:
        WrongEntry: there is none, or it is too large.
    """
    value = record.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise WrongEntry(f"its {key} is {short(value)}, not a whole number")
    if value.bit_length() >= bits:
        raise WrongEntry(f"its {key} {short(value)} is too large for {bits} bits")
    return value


def clipped_box(box: Any, size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """A box as x1, y1, x2, y2 inside its image; None if less than a pixel of a side is left.

    Args:
        box: x, y, width, height in pixels.
        size: height and width of the image.

    Raises:
        WrongEntry: it is not four finite numbers.
    """
    try:
        x, y, width, height = box
        if not math.isfinite(x + y + width + height):
            raise WrongEntry(f"its bbox {short(box)} is not finite")
    except (TypeError, ValueError, OverflowError):
        raise WrongEntry(f"its bbox is {short(box)}, not [x, y, width, height]") from None
    x1, y1 = max(x, 0.0), max(y, 0.0)
    x2, y2 = min(x + width, size[1]), min(y + height, size[0])
    return (x1, y1, x2, y2) if x2 - x1 >= 1 and y2 - y1 >= 1 else None


def polygon(points: Any) -> "array[float]":
    """A polygon's coordinates x, y, x, y, ..., in pixels.

    Raises:
        WrongEntry: it is not a list of pairs of finite numbers.
    """
    try:
        ring = array("f", points)
    except (TypeError, OverflowError):
        raise WrongEntry("its segmentation is not a list of polygons [x, y, x, y, ...]") from None
    if len(ring) % 2 or not math.isfinite(sum(ring)):
        raise WrongEntry("a polygon of it has an odd number of coordinates, or one that is NaN")
    return ring


def compressed_runs(shape: Mapping[str, Any], size: tuple[int, int]) -> bytes:
    """Run lengths, a list or a string, as compressed bytes.

    pycocotools reads memory that is not its own where they make too few pixels.

    Args:
        shape: ``size`` and ``counts``.
        size: height and width of the image.

    Raises:
        WrongEntry: they are damaged, or not of the image's size.
    """
    counts = shape.get("counts")
    if shape.get("size") != list(size):
        raise WrongEntry(
            f"its run lengths are of size {short(shape.get('size'))}, its image is {list(size)}"
        )
    match counts:
        case list() if all(isinstance(c, int) and c >= 0 for c in counts):
            pixels, least = sum(counts), 0
        case str() if counts.isascii() and counts:
            runs = run_lengths(counts.encode())
            pixels, least = int(runs.sum()), int(runs.min())
        case _:
            raise WrongEntry("its run lengths are neither a list of counts nor a compressed string")
    if least < 0 or pixels != size[0] * size[1]:
        raise WrongEntry(
            f"its run lengths do not sum up to the {size[0] * size[1]} pixels of its image, but to "
            f"{short(pixels)}"
        )
    if isinstance(counts, str):
        return counts.encode()
    return bytes(coco_mask.frPyObjects({"counts": counts, "size": list(size)}, *size)["counts"])


def run_lengths(compressed: bytes) -> NDArray[np.int64]:
    """The counts of COCO's compressed run lengths (cocoapi, ``rleFrString``).

    Each is written in groups of five bits, lowest first, with a continuation bit and a sign; from
    the fourth on as the difference to the last but one.

    Raises:
        WrongEntry: no run lengths are written so.
    """
    groups = np.frombuffer(compressed, np.uint8).astype(np.int64) - 48
    last = (groups & 0x20) == 0
    if not last[-1] or groups.min() < 0 or groups.max() >= 64:
        raise WrongEntry("its run lengths are damaged")
    starts = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    place = np.arange(len(groups)) - np.repeat(starts, np.diff(starts, append=len(groups)))
    counts = np.add.reduceat((groups & 0x1F) << (5 * place), starts)
    counts -= np.where(groups[last] & 0x10, 1 << (5 * (place[last] + 1)), 0)
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    return counts
