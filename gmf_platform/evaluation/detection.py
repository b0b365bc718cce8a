"""From a detector's output to boxes and masks on the original image."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as run_lengths

from gmf_platform.evaluation.segmentation import Size
from gmf_platform.models.heads.detection import Detections

__all__ = [
    "ImageDetections",
    "at_original_size",
    "encode_mask",
    "encoded",
    "scaled_to_original",
]

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

# Pixels of a mask that are worked on at once; each takes some 8 bytes on the way to run lengths.
_PIXELS_AT_ONCE = 2**21


class ImageDetections(NamedTuple):
    """What was found on one image, in its original pixels, on the CPU.

    Attributes:
        size: height and width of the original image.
        boxes: (N, 4), left, top, right, bottom; float32 from a network, float64 from a file.
        scores: float32 (N,).
        labels: int16 (N,), 0..K-1.
        rles: of each mask the ``counts`` of COCO's compressed run-length code; None: no masks.
    """

    size: Size
    boxes: NDArray[np.floating[Any]]
    scores: Floats
    labels: NDArray[np.int16]
    rles: list[bytes] | None = None

    def segmentations(self) -> list[dict[str, Any]]:
        """Masks as pycocotools takes them: ``size`` and ``counts``; empty without masks."""
        return [{"size": list(self.size), "counts": counts} for counts in self.rles or ()]

    def above(self, score: float) -> "ImageDetections":
        """Those of at least a score."""
        kept = np.flatnonzero(self.scores >= score)
        rles = None if self.rles is None else [self.rles[i] for i in kept]
        fields = (self.boxes[kept], self.scores[kept], self.labels[kept], rles)
        return ImageDetections(self.size, *fields)


def at_original_size(detections: Detections, *, size: Size, original_size: Size) -> ImageDetections:
    """Boxes and masks of one image on its original pixels.

    Args:
        detections: in pixels of the network's input.
        size: height and width of the image in the network's input, padding not counted.
        original_size: height and width of the file.

    Returns:
        See `encoded`.
    """
    scaled = scaled_to_original(detections, size=size, original_size=original_size)
    return encoded(scaled, size=original_size)


def scaled_to_original(detections: Detections, *, size: Size, original_size: Size) -> Detections:
    """The same in pixels of the original image, float32, on the CPU.

    Masks stay as they are: they are relative to their boxes.
    """
    scale = torch.tensor([original_size[1] / size[1], original_size[0] / size[0]] * 2)
    boxes, scores, labels = (x.detach().cpu() for x in detections[:3])
    masks = None if detections.masks is None else detections.masks.detach().float().cpu()
    return Detections(boxes.float() * scale, scores.float(), labels, masks)


def encoded(detections: Detections, *, size: Size) -> ImageDetections:
    """Clip boxes to the image and paste masks into it.

    Args:
        detections: in pixels of the original image, on the CPU.
        size: its height and width.

    Returns:
        In the order given, without those whose box or score is not a number: such a box would
        pass for a perfect match in COCO's evaluation, whose comparisons with NaN all fail.
        (detectron2's ``fast_rcnn_inference`` drops them likewise.)
    """
    boxes, scores, labels = (x.numpy() for x in detections[:3])
    valid = np.isfinite(boxes).all(axis=1) & np.isfinite(scores)
    boxes = np.clip(boxes[valid], 0, np.array(size[::-1] * 2, np.float32))
    rles = None
    if detections.masks is not None:
        masks = detections.masks.numpy()[valid]
        rles = [encode_mask(m, box, size=size) for m, box in zip(masks, boxes, strict=True)]
    return ImageDetections(size, boxes, scores[valid], labels[valid].astype(np.int16), rles)


def encode_mask(
    mask: Floats, box: Sequence[float] | Floats, *, size: Size, threshold: float = 0.5
) -> bytes:
    """Paste a mask into its box, cut it at a threshold and encode it.

    The value at the centre of each pixel is read from the mask stretched over the box, bilinear,
    zero outside of the mask: mmdetection's and detectron2's ``grid_sample`` with
    ``align_corners=False``. (torchvision rounds the box to whole pixels first, which moves masks
    by up to one pixel.) Bilinear weights are a product, so two small matrix products do it, and
    the code is written from the pixels of the box alone: no picture of the image's size is made.

    Args:
        mask: (M, M) probabilities.
        box: left, top, right, bottom in pixels, not rounded.
        size: height and width of the image.
        threshold: pixels of at least this probability belong to the object.

    Returns:
        ``counts`` of COCO's compressed run-length code, as ``pycocotools.mask.encode`` gives it.
    """
    height, width = size
    left, top, right, bottom = (float(edge) for edge in box)
    rows, columns = _pixels(top, bottom, height), _pixels(left, right, width)
    by_row = _weights(rows, top, bottom, mask.shape[0]) @ mask
    by_column = _weights(columns, left, right, mask.shape[1])
    step = max(1, _PIXELS_AT_ONCE // max(1, len(rows)))
    edges = [np.empty(0, dtype=np.int64)]
    for i in range(0, len(columns), step):
        inside = by_column[i : i + step] @ by_row.T >= threshold
        edges.append(_edges(inside, columns[i], rows[0] if len(rows) else 0, height))
    return _compress(np.concatenate(edges), size)


def _pixels(low: float, high: float, length: int) -> Integers:
    """Pixels of a row or column that an interval touches."""
    return np.arange(max(int(np.floor(low)), 0), min(int(np.ceil(high)), length))


def _weights(pixels: Integers, low: float, high: float, cells: int) -> Floats:
    """Share (n, cells) of each cell between low and high in the value at a pixel's centre."""
    cell = (pixels + 0.5 - low) / max(high - low, 1e-6) * cells - 0.5
    return np.maximum(0, 1 - np.abs(cell[:, None] - np.arange(cells))).astype(np.float32)


def _edges(inside: NDArray[np.bool_], left: int, top: int, height: int) -> Integers:
    """Where runs begin and end, counted down the columns of the image.

    Args:
        inside: (columns, rows) of a part of the image.
        left: its first column.
        top: its first row.
        height: of the image.
    """
    padded = np.zeros((inside.shape[0], inside.shape[1] + 2), dtype=bool)
    padded[:, 1:-1] = inside
    flips = padded[:, 1:] != padded[:, :-1]
    column, row = np.divmod(np.flatnonzero(flips), flips.shape[1])
    return (column + left) * height + row + top


def _compress(edges: Integers, size: Size) -> bytes:
    """Run lengths, and their compressed code, from where runs begin and end."""
    # A run that goes on at the top of the next column ended and began at one place: join it.
    repeated = np.flatnonzero(edges[1:] == edges[:-1])
    edges = np.delete(edges, np.concatenate([repeated, repeated + 1]))
    area = size[0] * size[1]
    end = [] if len(edges) and edges[-1] == area else [area]
    counts = np.diff(np.concatenate([[0], edges, end])).astype(np.int64)
    code = run_lengths.frPyObjects({"size": list(size), "counts": counts.tolist()}, *size)
    return bytes(code["counts"])
