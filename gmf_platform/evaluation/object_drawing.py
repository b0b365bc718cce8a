"""Boxes and masks drawn on their image."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as run_lengths

from gmf_platform.evaluation.detection import ImageDetections
from gmf_platform.evaluation.segmentation import Size

__all__ = ["Objects", "draw_objects", "found_objects", "true_objects"]

Picture = NDArray[np.uint8]
_CROWD = (160, 160, 160)
_OPACITY = 0.4


class Objects(NamedTuple):
    """What is to be drawn.

    Attributes:
        size: height and width of the image that boxes and masks refer to.
        boxes: (N, 4), left, top, right, bottom.
        labels: of each, 0..K-1; -1 for a crowd.
        texts: of each, beside its box; may be empty.
        rles: of each a mask as COCO's compressed run lengths, or none at all.
    """

    size: Size
    boxes: NDArray[Any]
    labels: list[int]
    texts: list[str]
    rles: list[dict[str, Any]]


def true_objects(truth: Mapping[str, Any], size: Size) -> Objects:
    """Objects of a data set.

    Args:
        truth: ``boxes`` (N, 4), ``labels`` (N,), and if the data has them ``rles`` (list of COCO
            run lengths) and ``crowd`` (N,).
        size: height and width of the image that they refer to.
    """
    labels = np.asarray(truth["labels"])
    crowd = np.asarray(truth.get("crowd", np.zeros(len(labels))), dtype=bool)
    texts = ["crowd" if many else "" for many in crowd]
    boxes = np.asarray(truth["boxes"]).reshape(-1, 4)
    return Objects(
        size, boxes, np.where(crowd, -1, labels).tolist(), texts, truth.get("rles") or []
    )


def found_objects(
    found: ImageDetections, *, min_score: float, class_names: Sequence[str] = ()
) -> Objects:
    """Detections of at least a score, each with its score and, of class names, its name."""
    kept = found.above(min_score)
    names = [f"{class_names[label]} " if class_names else "" for label in kept.labels]
    texts = [f"{name}{score:.2f}" for name, score in zip(names, kept.scores, strict=True)]
    return Objects(kept.size, kept.boxes, kept.labels.tolist(), texts, kept.segmentations())


def draw_objects(image: Picture, objects: Objects, colours: Picture) -> Picture:
    """An image (H, W, 3) with masks, boxes and texts drawn on it.

    The largest come first, so that small ones stay visible. Crowds are grey.

    Args:
        image: of any size; boxes and masks are scaled to it.
        objects: what to draw.
        colours: (K or more, 3), by label.
    """
    picture = np.array(image, dtype=np.uint8)
    height, width = picture.shape[:2]
    scale = np.array([width / objects.size[1], height / objects.size[0]] * 2)
    boxes = objects.boxes * scale
    order = np.argsort(-np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), kind="stable").tolist()
    shades = [_CROWD if label < 0 else _rgb(colours[label]) for label in objects.labels]
    line = max(1, round(min(height, width) / 300))
    for i in order if objects.rles else ():
        _draw_mask(picture, objects.rles[i], shades[i], line)
    for i in order:
        left, top, right, bottom = np.round(boxes[i]).astype(int).tolist()
        cv2.rectangle(picture, (left, top), (right - 1, bottom - 1), shades[i], line)
    corners = [tuple(boxes[i, :2].tolist()) for i in order]
    return _write(picture, corners, [objects.texts[i] for i in order], [shades[i] for i in order])


def _draw_mask(picture: Picture, rle: Mapping[str, Any], colour: Sequence[int], line: int) -> None:
    """Paint a mask in translucent colour, and its outline."""
    inside = cv2.resize(
        run_lengths.decode(dict(rle)), picture.shape[1::-1], interpolation=cv2.INTER_NEAREST
    )
    where = inside.astype(bool)
    mixed = (1 - _OPACITY) * picture[where] + _OPACITY * np.array(colour)
    picture[where] = mixed.round().astype(np.uint8)
    outlines, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outlines, -1, colour, line)


def _write(
    picture: Picture,
    corners: Sequence[tuple[float, float]],
    texts: Sequence[str],
    shades: Sequence[Sequence[int]],
) -> Picture:
    """Put texts above the upper left corners of boxes, inside the picture, on their colours."""
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(max(9, round(min(picture.shape[:2]) / 40)))
    for (x, y), text, shade in zip(corners, texts, shades, strict=True):
        if not text:
            continue
        right, bottom = draw.textbbox((0, 0), text, font=font)[2:]
        x = max(0, min(round(x), canvas.width - round(right) - 2))
        y = max(0, round(y) - round(bottom) - 1)
        draw.rectangle((x, y, x + right + 1, y + bottom + 1), fill=tuple(shade))
        dark = sum(shade) > 3 * 128
        draw.text((x + 1, y), text, fill="black" if dark else "white", font=font)
    return np.array(canvas)


def _rgb(colour: NDArray[Any]) -> tuple[int, ...]:
    return tuple(int(channel) for channel in colour)
