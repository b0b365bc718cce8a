"""Copy-paste: objects of one image are put into another (Ghiasi et al., arXiv 2012.07177)."""

import random
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt

from datamodules.transforms.detection import DetectionSample, Patch

__all__ = ["copy_paste"]

# Of mmdetection's CopyPaste: an object that gets covered stays if its box moves by at most so many
# pixels, or if more than so many pixels of it are still to be seen.
_BOX_MOVED, _PIXELS_LEFT = 10, 300


def copy_paste(
    target: DetectionSample, source: DetectionSample, *, side: int, draw: random.Random
) -> DetectionSample:
    """Put a random part of one sample's objects over another sample.

    What they cover is taken from the objects below: masks and boxes shrink, and objects that are
    mostly hidden are dropped.

    Args:
        target: with masks.
        source: with masks; both fit into the square.
        side: of the square that the result fills, pixels.
        draw: chooses the objects.

    Returns:
        A sample of side x side pixels; the target itself if the source has no objects.
    """
    if target.masks is None or source.masks is None:
        raise ValueError("copy-paste needs samples with masks")
    number = draw.randint(0, len(source.masks))
    chosen = sorted(draw.sample(range(len(source.masks)), number))
    if not chosen:
        return target
    pasted = [source.masks[i] for i in chosen]
    covered = np.zeros((side, side), np.uint8)
    for patch in pasted:
        window = _window(covered, patch)
        np.maximum(window, patch.pixels, out=window)
    below = _uncovered(target, target.masks, covered)
    image = cv2.copyTo(_square(source.image, side), covered, _square(target.image, side))
    return DetectionSample(
        image=image.astype(np.uint8, copy=False),
        boxes=np.concatenate([below.boxes, source.boxes[chosen]]),
        labels=np.concatenate([below.labels, source.labels[chosen]]),
        crowd=target.crowd,
        masks=[*(below.masks or []), *pasted],
    )


def _uncovered(
    sample: DetectionSample, masks: list[Patch], covered: npt.NDArray[np.uint8]
) -> DetectionSample:
    """What is left to be seen of a sample's objects."""
    kept, boxes, left = [], [], []
    for i, (patch, box) in enumerate(zip(masks, sample.boxes, strict=True)):
        over = _window(covered, patch)
        if (patch.pixels & over).any():
            patch = Patch(patch.top, patch.left, patch.pixels & (1 - over))
            smaller = _shrunk(patch, box)
            # What is left of a mask may lie beyond the box that came with it.
            sliver = (smaller[2:] - smaller[:2]).min() < 1
            pixels = int(np.count_nonzero(patch.pixels))
            hidden = np.abs(smaller - box).max() > _BOX_MOVED and pixels <= _PIXELS_LEFT
            if sliver or hidden:
                continue
            box = smaller
        kept.append(i)
        boxes.append(box)
        left.append(patch)
    boxed = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return replace(sample, boxes=boxed, labels=sample.labels[kept], masks=left)


def _shrunk(patch: Patch, box: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The part of a box that the mask's pixels still reach."""
    rows, columns = np.flatnonzero(patch.pixels.any(1)), np.flatnonzero(patch.pixels.any(0))
    if not len(rows):
        return np.zeros(4, np.float32)
    top, left = patch.top, patch.left
    around = (left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1)
    low, high = np.maximum(box[:2], around[:2]), np.minimum(box[2:], around[2:])
    return np.concatenate([low, np.maximum(low, high)]).astype(np.float32)


def _window(canvas: npt.NDArray[np.uint8], patch: Patch) -> npt.NDArray[np.uint8]:
    height, width = patch.pixels.shape
    return canvas[patch.top : patch.top + height, patch.left : patch.left + width]


def _square(image: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    """A copy of an image, padded to a square with zeros on the right and at the bottom."""
    bottom, right = side - image.shape[0], side - image.shape[1]
    padded = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=0)
    return padded.astype(np.uint8, copy=False)
