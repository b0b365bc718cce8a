"""How far colour alone gets on a segmentation set: the score that a model has to beat."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gmf_platform.errors import UserError

__all__ = ["colour_baseline"]

_BITS: Final = 4  # of each colour channel; 4096 colours, so that 200 small images fill most of them
_COLOURS: Final = 1 << (3 * _BITS)
_CLASSES: Final = 256  # what an 8-bit mask can hold; 0 is "other" and never counts

Counts = NDArray[np.int64]


def colour_baseline(root: Path) -> float:
    """Score a classifier that sees one pixel at a time and knows nothing but its colour.

    It remembers the most frequent class of each quantised colour of the training images, with the
    classes' overall frequencies as prior (Laplace's rule: one pixel's worth of prior per colour).

    Args:
        root: Folder in the ADE20K layout: ``images/{training,validation}`` and ``annotations/``.

    Returns:
        Mean IoU 0..1 over the classes that occur in masks or predictions of the validation images;
        pixels of class 0 (other) are ignored.

    Raises:
        UserError: A split has no image, or an image no mask or one of another size.
    """
    seen = np.zeros(_COLOURS * _CLASSES, np.int64)
    for colours, labels in _labelled_pixels(root, "training"):
        seen += np.bincount(colours * _CLASSES + labels, minlength=len(seen))
    table = seen.reshape(_COLOURS, _CLASSES)
    frequency = table.sum(0) / max(1, table.sum())
    best = np.argmax(table + frequency, axis=1)

    confusion = np.zeros(_CLASSES**2, np.int64)
    for colours, labels in _labelled_pixels(root, "validation"):
        confusion += np.bincount(labels * _CLASSES + best[colours], minlength=len(confusion))
    return _mean_iou(confusion.reshape(_CLASSES, _CLASSES))


def _labelled_pixels(
    root: Path, split: Literal["training", "validation"]
) -> Iterator[tuple[Counts, Counts]]:
    """Yield, for each image, the quantised colours and the classes of its labelled pixels (N,)."""
    paths = sorted((root / "images" / split).glob("*.jpg"))
    if not paths:
        raise UserError(
            f"no *.jpg in {root / 'images' / split}: name a folder in the ADE20K layout"
        )
    for path in paths:
        mask = root / "annotations" / split / f"{path.stem}.png"
        if not mask.is_file():
            raise UserError(f"{path} has no mask {mask}: add the mask or remove the image")
        with Image.open(path) as picture, Image.open(mask) as annotation:
            image, labels = np.asarray(picture.convert("RGB")), np.asarray(annotation, np.int64)
        if image.shape[:2] != labels.shape:
            raise UserError(
                f"{mask} is {labels.shape} but its image is {image.shape[:2]}: "
                "give one class number per pixel"
            )
        red, green, blue = np.moveaxis(image.astype(np.int64) >> (8 - _BITS), -1, 0)
        colours = (red << (2 * _BITS)) | (green << _BITS) | blue
        labelled = labels > 0
        yield colours[labelled], labels[labelled]


def _mean_iou(confusion: Counts) -> float:
    """Mean IoU of a confusion matrix (truth, prediction) over the classes that occur in it."""
    hits = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hits
    occurs = union > 0
    return float((hits[occurs] / union[occurs]).mean())


if __name__ == "__main__":
    print(
        f"colour alone {colour_baseline(Path(sys.argv[1])):.3f} mIoU (per-pixel classifier of RGB)"
    )
