"""COCO annotations in a few flat arrays, so that loader processes share them.

A Python object per annotation costs each worker its own copy: touching it writes its reference
count, and the page is copied. Here no object belongs to an annotation or an image: a forked worker
reads the parent's memory, a spawned one gets the arrays in one piece.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from datamodules.images import DataError
from gmf_platform.errors import counted

__all__ = ["CocoAnnotations", "DetectionTargets", "Outline", "Ragged", "Rle"]

Rle: TypeAlias = dict[str, Any]
"""A mask as COCO's compressed run lengths: ``size`` [height, width] and ``counts``, bytes."""
Outline: TypeAlias = list[NDArray[np.float64]] | Rle
"""An object's shape: polygons (K, 2) of x and y in pixels, or run lengths. No polygons: unknown."""

# float32 keeps three decimals of coordinates up to 8192 px: rounded back, they are the file's own
# numbers again (COCO's have two decimals), and masks equal pycocotools' to the pixel.
_DECIMALS = 3


class DetectionTargets(NamedTuple):
    """The objects of an image.

    Attributes:
        boxes: float32 (N, 4), x1, y1, x2, y2 in pixels of the image file.
        labels: int64 (N,), 0..K-1.
        crowd: bool (N,), regions of many objects, never targets of training.
        rles: a mask for each, empty where the shape is unknown; None if the set is read without.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    rles: list[Rle] | None


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths, end to end.

    Attributes:
        values: all rows joined.
        ends: int64, where each row ends.
    """

    values: NDArray[Any]
    ends: NDArray[np.int64]

    def span(self, row: int) -> tuple[int, int]:
        """Where a row begins and ends."""
        return (int(self.ends[row - 1]) if row else 0), int(self.ends[row])

    def row(self, row: int) -> NDArray[Any]:
        """The values of a row."""
        first, end = self.span(row)
        return self.values[first:end]


@dataclass(frozen=True)
class CocoAnnotations:
    """The usable content of an annotation file, made by `datamodules.coco_json.read_coco`.

    Attributes:
        path: the file.
        class_names: in label order.
        category_ids: the file's id of each class.
        image_ids: int64 (I,), in the file's order.
        sizes: int32 (I, 2), heights and widths.
        names: the images' file names, UTF-8.
        of_image: the annotations of each image.
        annotation_ids: int64 (A,).
        boxes: float32 (A, 4), x1, y1, x2, y2 in pixels, inside the image.
        labels: int64 (A,).
        crowd: bool (A,).
        rings: x, y, x, y, ... of each polygon, float32.
        polygons: the rows of ``rings`` of each annotation.
        runs: compressed run lengths of each annotation; empty for polygons.
        with_masks: polygons and run lengths were read.
        dropped: boxes left out since less than a pixel of their width or height is in the image.
        problems: what is wrong with the file; what it concerns is left out.
    """

    path: Path
    class_names: list[str]
    category_ids: list[int]
    image_ids: NDArray[np.int64]
    sizes: NDArray[np.int32]
    names: Ragged
    of_image: Ragged
    annotation_ids: NDArray[np.int64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    rings: Ragged
    polygons: Ragged
    runs: Ragged
    with_masks: bool
    dropped: int
    problems: list[DataError]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.image_ids)

    @cached_property
    def has_shape(self) -> NDArray[np.bool_]:
        """Which annotations have polygons or run lengths (A,); none if the set is without masks."""
        rows = np.diff(self.polygons.ends, prepend=0) + np.diff(self.runs.ends, prepend=0)
        return np.asarray(rows > 0)

    @cached_property
    def is_object(self) -> NDArray[np.bool_]:
        """Which annotations are targets (A,): no crowds, and with masks none of unknown shape."""
        return ~self.crowd & self.has_shape if self.with_masks else ~self.crowd

    @cached_property
    def num_objects(self) -> NDArray[np.int64]:
        """How many targets each image has (I,)."""
        total = np.concatenate([[0], np.cumsum(self.is_object[self.of_image.values])])
        return np.diff(total[self.of_image.ends], prepend=0)

    def left_out(self) -> list[str]:
        """What is no target of training though nothing is wrong with it, in sentences."""
        lines = []
        if self.dropped:
            boxes = counted(self.dropped, "box is", "boxes are")
            lines.append(
                f"{self.path}: {boxes} left out, of which less than a pixel of width or height is "
                "in the image"
            )
        shapeless = int((~self.crowd & ~self.is_object).sum())
        if shapeless:
            objects = counted(shapeless, "object has", "objects have")
            lines.append(f"{self.path}: {objects} no mask, and so no part in training")
        return lines

    def file_name(self, image: int) -> str:
        """The file of an image, as the annotation file names it."""
        return self.names.row(image).tobytes().decode()

    def size(self, image: int) -> tuple[int, int]:
        """Height and width of an image, as the annotation file has them."""
        height, width = self.sizes[image].tolist()
        return height, width

    def objects(self, image: int) -> DetectionTargets:
        """The objects of an image, crowds included, without their masks."""
        which = self.of_image.row(image)
        return DetectionTargets(self.boxes[which], self.labels[which], self.crowd[which], None)

    def outlines(self, image: int) -> list[Outline] | None:
        """The shapes of the objects of an image; None if the set is read without masks."""
        if not self.with_masks:
            return None
        return [self._outline(int(a), self.size(image)) for a in self.of_image.row(image)]

    def targets(self, image: int) -> DetectionTargets:
        """The objects of an image, crowds included, with their masks in its own pixels."""
        outlines = self.outlines(image)
        rles = None if outlines is None else [_rle(o, self.size(image)) for o in outlines]
        return self.objects(image)._replace(rles=rles)

    def _outline(self, annotation: int, size: tuple[int, int]) -> Outline:
        runs = self.runs.row(annotation)
        if len(runs):
            return {"size": list(size), "counts": runs.tobytes()}
        rows = range(*self.polygons.span(annotation))
        rings = (self.rings.row(row).astype(np.float64).reshape(-1, 2) for row in rows)
        return [np.round(ring, _DECIMALS) for ring in rings]


def _rle(outline: Outline, size: tuple[int, int]) -> Rle:
    if isinstance(outline, dict):
        return outline
    if not outline:
        return dict(coco_mask.encode(np.zeros(size, np.uint8, order="F")))
    rings = [ring.ravel().tolist() for ring in outline]
    return dict(coco_mask.merge(coco_mask.frPyObjects(rings, *size)))
