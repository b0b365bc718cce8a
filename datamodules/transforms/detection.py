"""Detection's transforms, by the rules of mmdetection: what happens to pixels, boxes and masks.

An image is resized, cropped and flipped step by step; along the way a `View` keeps where its pixels
went, so that boxes and polygons are moved once and masks are drawn at their final size. Images are
uint8 RGB (H, W, 3); sizes are (height, width) in pixels. Normalising happens on the device.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from datamodules.coco_entries import run_lengths
from gmf_platform.errors import UserError

__all__ = [
    "DetectionSample",
    "DetectionTransform",
    "Patch",
    "ScaleJitter",
    "ShortSide",
    "View",
    "place",
    "rescaled",
]

Size = tuple[int, int]
Image8 = npt.NDArray[np.uint8]
Boxes = npt.NDArray[np.float32]

# Less than this is the noise of 64-bit arithmetic, which must not decide on which side of a
# pixel's centre a coordinate lies.
_DECIMALS = 6


class Patch(NamedTuple):
    """A mask within an image: 0 and 1 (h, w) at ``top`` and ``left``, 0 elsewhere."""

    top: int
    left: int
    pixels: Image8


@dataclass(frozen=True)
class DetectionSample:
    """An image with its objects.

    Attributes:
        image: uint8 (H, W, 3).
        boxes: float32 (N, 4), x1, y1, x2, y2 in pixels, inside the image.
        labels: int64 (N,).
        crowd: float32 (M, 4), boxes of regions that are no targets.
        masks: one of each object; None if the set is read without.
    """

    image: Image8
    boxes: Boxes
    labels: npt.NDArray[np.int64]
    crowd: Boxes
    masks: list[Patch] | None


@dataclass(frozen=True)
class View:
    """An image after some steps, and where its pixels went.

    Attributes:
        image: uint8 (H, W, 3).
        x: factor and offset that lead from the file's x to this image's.
        y: likewise.
    """

    image: Image8
    x: tuple[float, float] = (1.0, 0.0)
    y: tuple[float, float] = (1.0, 0.0)

    @property
    def size(self) -> Size:
        """Height and width."""
        return self.image.shape[0], self.image.shape[1]

    def resized(self, size: Size) -> "View":
        """Resize by OpenCV's bilinear interpolation without antialiasing, as mmcv does."""
        (height, width), (new_height, new_width) = self.size, size
        if size == self.size:
            return self
        image = cv2.resize(self.image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
        x, y = new_width / width, new_height / height
        axes = (self.x[0] * x, self.x[1] * x), (self.y[0] * y, self.y[1] * y)
        return View(image.astype(np.uint8, copy=False), *axes)

    def cropped(self, top: int, left: int, size: Size) -> "View":
        """Cut out a window; it must lie in the image."""
        image = self.image[top : top + size[0], left : left + size[1]]
        return View(image, (self.x[0], self.x[1] - left), (self.y[0], self.y[1] - top))

    def flipped(self) -> "View":
        """Swap left and right."""
        x = (-self.x[0], self.size[1] - self.x[1])
        return View(cv2.flip(self.image, 1).astype(np.uint8, copy=False), x, self.y)

    def boxes(self, boxes: Boxes) -> Boxes:
        """Boxes (N, 4) of the file as they lie here, clipped to the image."""
        moved = np.empty(boxes.shape, dtype=np.float64)
        for first, (factor, offset), edge in ((0, self.x, self.size[1]), (1, self.y, self.size[0])):
            ends = np.sort(boxes[:, first::2] * factor + offset, axis=1)
            moved[:, first::2] = ends.clip(0, edge)
        return moved.astype(np.float32)

    def mask(self, outline: Sequence[npt.NDArray[np.float64]] | dict[str, Any]) -> Patch:
        """An object's mask in this image.

        Polygons are moved and then drawn by pycocotools' rule, so that no mask is ever resampled;
        of run lengths, each pixel takes the file's pixel under its centre.

        Args:
            outline: polygons (K, 2) of x and y in the file, or COCO's compressed run lengths.

        Returns:
            The patch, without any pixel where the object lies outside.
        """
        if isinstance(outline, dict):
            return self._sampled(outline)
        if not outline:
            return Patch(0, 0, np.zeros((0, 0), np.uint8))
        factors, offsets = (self.x[0], self.y[0]), (self.x[1], self.y[1])
        rings = [np.round(ring * factors + offsets, _DECIMALS).ravel().tolist() for ring in outline]
        return _drawn(coco_mask.merge(coco_mask.frPyObjects(rings, *self.size)))

    def _sampled(self, rle: dict[str, Any]) -> Patch:
        x, y, width, height = coco_mask.toBbox(rle).tolist()
        box = np.array([[x, y, x + width, y + height]], dtype=np.float32)
        left, top = np.floor(self.boxes(box)[0, :2]).astype(int).tolist()
        right, bottom = np.ceil(self.boxes(box)[0, 2:]).astype(int).tolist()
        bitmap: Image8 = coco_mask.decode(rle)
        rows = _source(np.arange(top, bottom), self.y, bitmap.shape[0])
        columns = _source(np.arange(left, right), self.x, bitmap.shape[1])
        return Patch(top, left, np.ascontiguousarray(bitmap[np.ix_(rows, columns)]))


def _drawn(rle: dict[str, Any]) -> Patch:
    """The window around a mask; to decode all of the image would take several times as long."""
    left, top, width, height = coco_mask.toBbox(rle).astype(int).tolist()
    runs, rows = run_lengths(rle["counts"]), rle["size"][0]
    first, end = left * rows, (left + width) * rows  # run lengths go down the columns
    inside = np.diff(np.cumsum(runs).clip(first, end), prepend=first)
    values = (np.arange(len(runs)) & 1).astype(np.uint8)
    columns = np.repeat(values, inside).reshape(width, rows)[:, top : top + height]
    return Patch(top, left, np.ascontiguousarray(columns.T))


def _source(
    pixels: npt.NDArray[np.int64], axis: tuple[float, float], edge: int
) -> npt.NDArray[np.int64]:
    """The file's pixels under the centres of an image's pixels, along one axis."""
    factor, offset = axis
    source = np.floor((pixels + 0.5 - offset) / factor).astype(np.int64)
    return source.clip(0, edge - 1)


def place(
    view: View,
    *,
    boxes: Boxes,
    labels: npt.NDArray[np.int64],
    crowd: npt.NDArray[np.bool_],
    outlines: Sequence[Any] | None,
) -> DetectionSample:
    """Put the objects of a file into a view of its image.

    Boxes of which less than a pixel is left are dropped. With masks, an object that has no pixel
    of its own (or no known shape) becomes a crowd, no target: mmdetection's ``LoadAnnotations``
    ignores it likewise.

    Args:
        view: of the image.
        boxes: (N, 4) in the file's pixels.
        labels: (N,).
        crowd: (N,).
        outlines: a shape for each; None: no masks are wanted.
    """
    moved = view.boxes(boxes)
    left = ((moved[:, 2:] - moved[:, :2]) >= 1).all(axis=1)
    regions = moved[left & crowd]
    chosen = np.flatnonzero(left & ~crowd)
    masks = None
    if outlines is not None:
        patches = [view.mask(outlines[i]) for i in chosen.tolist()]
        seen = np.array([patch.pixels.any() for patch in patches], dtype=bool)
        regions = np.concatenate([regions, moved[chosen[~seen]]])
        masks = [patch for patch, shown in zip(patches, seen, strict=True) if shown]
        chosen = chosen[seen]
    return DetectionSample(view.image, moved[chosen], labels[chosen], regions, masks)


def rescaled(size: Size, short: int, long: int) -> Size:
    """The size of an image made to fit: short edge at most ``short``, long edge at most ``long``.

    The ratio is kept, edges are int(edge * factor + 0.5) (mmcv's ``rescale_size``).
    """
    factor = min(long / max(size), short / min(size))
    return max(int(size[0] * factor + 0.5), 1), max(int(size[1] * factor + 0.5), 1)


class DetectionTransform(Protocol):
    """How training images are resized, cropped and flipped."""

    def __call__(self, image: Image8, draw: random.Random) -> View:
        """Transform an image; all randomness comes from ``draw``."""
        ...

    def largest(self, size: Size) -> Size:
        """The largest result that an image of this orientation can have."""
        ...

    @property
    def turns(self) -> bool:
        """Whether a wide image may come out high, and the reverse."""
        ...

    @property
    def least_padded(self) -> Size:
        """To what batches are padded at least."""
        ...


@dataclass(frozen=True)
class ShortSide:
    """Resize to one of several short sides, with DETR's crop or without, and flip.

    One short side is the 1x recipe (1333x800). 480, 512, ..., 800 with ``crop_branch`` is the 3x
    recipe, "AutoAugment" in Swin's and PVT's configs, from DETR's
    ``datasets/coco.py:make_coco_transforms``: half of the images are first resized to a short side
    of 400, 500 or 600 and cropped to 384..600 pixels a side (``RandomCrop``, ``absolute_range``;
    crops without objects are allowed).

    Args:
        shorts: the short sides to choose from.
        long: the long side is at most this.
        crop_branch: crop half of the images.
        flip: share of images that are flipped.
    """

    shorts: Sequence[int]
    long: int
    crop_branch: bool = False
    flip: float = 0.5

    def __post_init__(self) -> None:
        if not self.shorts or min(*self.shorts, self.long) < 1:
            raise UserError(
                f"data.scale, data.multi_scale: sides {list(self.shorts)} and {self.long} must be "
                "positive pixels"
            )

    def __call__(self, image: Image8, draw: random.Random) -> View:
        """Transform an image."""
        view = View(image)
        if self.crop_branch and draw.random() < 0.5:
            view = view.resized(rescaled(view.size, draw.choice((400, 500, 600)), self.long))
            view = _crop(view, (384, 600), draw)
        view = view.resized(rescaled(view.size, draw.choice(self.shorts), self.long))
        return view.flipped() if draw.random() < self.flip else view

    def largest(self, size: Size) -> Size:
        """The largest result that an image of this orientation can have."""
        short = max(self.shorts)
        return (self.long, short) if size[0] > size[1] else (short, self.long)

    @property
    def turns(self) -> bool:
        """Crops do."""
        return self.crop_branch

    @property
    def least_padded(self) -> Size:
        """Nothing: batches are as large as their images."""
        return 0, 0


@dataclass(frozen=True)
class ScaleJitter:
    """Large-scale jitter: resize by a wide range of factors, crop to a square, flip.

    From Ghiasi et al., Simple Copy-Paste (arXiv 2012.07177), section 3: factors 0.1 to 2.0 of the
    size that fits the square; in mmdetection ``configs/common/lsj-100e_coco-instance.py``.

    Args:
        low: smallest factor.
        high: largest factor.
        side: of the square, pixels; batches are padded to it.
        flip: share of images that are flipped.
    """

    low: float
    high: float
    side: int = 1024
    flip: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high or self.side < 1:
            raise UserError(
                f"data.jitter {[self.low, self.high]}, data.jitter_size {self.side}: factors must "
                "be positive and rising, the size positive"
            )

    def __call__(self, image: Image8, draw: random.Random) -> View:
        """Transform an image."""
        view = View(image)
        bound = max(int(self.side * draw.uniform(self.low, self.high)), 1)
        view = _crop(view.resized(rescaled(view.size, bound, bound)), (self.side,) * 2, draw)
        return view.flipped() if draw.random() < self.flip else view

    def largest(self, size: Size) -> Size:
        """The square."""
        return self.side, self.side

    @property
    def turns(self) -> bool:
        """Squares do not."""
        return False

    @property
    def least_padded(self) -> Size:
        """The square, so that all batches have one shape."""
        return self.side, self.side


def _crop(view: View, bounds: tuple[int, int], draw: random.Random) -> View:
    """Cut out a window whose sides are uniform between bounds; shorter sides are kept whole."""
    height, width = (draw.randint(min(e, bounds[0]), min(e, bounds[1])) for e in view.size)
    top = draw.randint(0, view.size[0] - height)
    left = draw.randint(0, view.size[1] - width)
    return view.cropped(top, left, (height, width))
