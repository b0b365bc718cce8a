"""Pictures of images with labels or objects on them."""

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from gmf_platform.evaluation.detection import ImageDetections
from gmf_platform.evaluation.object_drawing import draw_objects, found_objects, true_objects

__all__ = [
    "Compared",
    "colour_labels",
    "compare_detections",
    "compare_labels",
    "comparison",
    "contact_sheet",
    "draw_truth",
    "overlay",
    "palette",
]

Picture = NDArray[np.uint8]
_IGNORED = (0, 0, 0)
_LEGEND_COLUMNS, _ROW = 6, 18
WIDTH = 320
"""Of one of the pictures in a sheet, pixels."""


def palette(num_classes: int) -> Picture:
    """Colours of which neighbours differ: hues by the golden ratio, three lightnesses.

    (256, 3), or a row a class where classes are more. Labels beyond the classes, the ignored one
    among them, are black.
    """
    colours = np.zeros((max(256, num_classes), 3), dtype=np.uint8)
    for i in range(num_classes):
        hue, light = (i * 0.618034) % 1.0, (0.5, 0.65, 0.35)[i % 3]
        rgb = colorsys.hls_to_rgb(hue, light, 0.75)
        colours[i] = [round(255 * channel) for channel in rgb]
    return colours


def colour_labels(labels: Picture, colours: Picture) -> Picture:
    """Labels (H, W) to a picture (H, W, 3)."""
    return colours[labels]


def overlay(image: Picture, labels: Picture, colours: Picture, opacity: float = 0.55) -> Picture:
    """Labels (H, W) painted over their image (H, W, 3); ignored pixels stay as they are."""
    painted = cv2.addWeighted(colour_labels(labels, colours), opacity, image, 1 - opacity, 0)
    known = colours[labels].any(axis=-1, keepdims=True)
    return np.where(known, painted, image).astype(np.uint8)


def draw_truth(image: Picture, targets: Any, colours: Picture) -> Picture:
    """An image (H, W, 3) with its targets drawn.

    Args:
        image: of any size.
        targets: labels (H, W) of each pixel; or objects in pixels of the image, see
            `true_objects`; or the label of the whole image, which its name tells already.
        colours: see `palette`.
    """
    match targets:
        case np.ndarray():
            return overlay(image, targets, colours)
        case Mapping():
            return draw_objects(image, true_objects(targets, image.shape[:2]), colours)
        case _:
            return image


class Compared(NamedTuple):
    """A row of `comparison`.

    Attributes:
        picture: (h, 3 * w, 3): image, truth and prediction side by side.
        labels: those drawn in it, for the legend.
    """

    picture: Picture
    labels: set[int]


def compare_labels(
    image: Picture, truth: Picture, guess: Picture, colours: Picture, *, width: int = WIDTH
) -> Compared:
    """An image (H, W, 3) beside its true and its predicted labels (H, W).

    Args:
        image: of any size; it is drawn ``width`` pixels wide.
        truth: labels, at the image's proportions.
        guess: likewise.
        colours: see `palette`.
        width: of each of the three, pixels.
    """
    size = (width, round(width * truth.shape[0] / truth.shape[1]))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    labels = (cv2.resize(x, size, interpolation=cv2.INTER_NEAREST) for x in (truth, guess))
    painted = (overlay(small, x.astype(np.uint8), colours, 0.7) for x in labels)
    present = {int(label) for labels in (truth, guess) for label in np.unique(labels)}
    return Compared(np.concatenate([small, *painted], axis=1), present)


def compare_detections(
    image: Picture,
    truth: Mapping[str, Any],
    found: ImageDetections,
    *,
    min_score: float = 0.3,
    width: int = WIDTH,
) -> Compared:
    """An image (H, W, 3) beside its true objects and what was found.

    Args:
        image: of any size; it is drawn ``width`` pixels wide.
        truth: objects in pixels of the original image, see `true_objects`.
        found: in pixels of the original image.
        min_score: detections that score less are left out.
        width: of each of the three, pixels.
    """
    small = cv2.resize(
        image, (width, round(width * image.shape[0] / image.shape[1])), interpolation=cv2.INTER_AREA
    ).astype(np.uint8, copy=False)
    both = true_objects(truth, found.size), found_objects(found, min_score=min_score)
    present = {label for objects in both for label in objects.labels if label >= 0}
    colours = palette(max(present, default=0) + 1)
    drawn = (draw_objects(small, objects, colours) for objects in both)
    return Compared(np.concatenate([small, *drawn], axis=1), present)


def comparison(rows: Sequence[Compared], class_names: Sequence[str]) -> Picture:
    """Images with truth and prediction, one row an image, over a legend.

    Args:
        rows: all of one width.
        class_names: in label order; the legend names the classes that occur.
    """
    colours = palette(len(class_names))
    width = rows[0].picture.shape[1]
    present = sorted(set().union(*(row.labels for row in rows)))
    legend = [(class_names[i], colours[i]) for i in present if i < len(class_names)]
    pictures = (row.picture for row in rows)
    return np.concatenate([_header(width), *pictures, _legend(legend, width)])


def contact_sheet(
    tiles: Sequence[tuple[str, Picture]],
    legend: Sequence[tuple[str, Picture]],
    *,
    columns: int = 4,
    width: int = 320,
) -> Picture:
    """Pictures with their names, in rows, over a legend.

    Args:
        tiles: name and picture (H, W, 3) of any size.
        legend: name and colour (3,) of each class.
        columns: pictures in a row.
        width: of a picture, pixels; the tiles are as high as the median picture, and hold each
            picture whole.
    """
    height = round(width * float(np.median([p.shape[0] / p.shape[1] for _, p in tiles])))
    cells = [_tile(name, picture, width, height) for name, picture in tiles]
    blank = np.full_like(cells[0], 255)
    cells += [blank] * (-len(cells) % columns)
    rows = [np.concatenate(cells[i : i + columns], 1) for i in range(0, len(cells), columns)]
    return np.concatenate([*rows, _legend(legend, columns * width)])


def _tile(name: str, picture: Picture, width: int, height: int) -> Picture:
    """A picture in the middle of its tile, under its name."""
    factor = min(width / picture.shape[1], height / picture.shape[0])
    size = max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor))
    canvas = Image.new("RGB", (width, height + _ROW), "white")
    small = Image.fromarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))
    canvas.paste(small, ((width - size[0]) // 2, _ROW + (height - size[1]) // 2))
    letters = width // 6 - 1  # of Pillow's own font
    ImageDraw.Draw(canvas).text((4, 3), name[-letters:], fill="black")
    return np.asarray(canvas)


def _header(width: int) -> Picture:
    canvas = Image.new("RGB", (width, _ROW), "white")
    for i, title in enumerate(("image", "truth", "prediction")):
        ImageDraw.Draw(canvas).text((i * width // 3 + 4, 3), title, fill="black")
    return np.asarray(canvas)


def _legend(entries: Sequence[tuple[str, Picture]], width: int) -> Picture:
    rows = max(1, -(-len(entries) // _LEGEND_COLUMNS))
    canvas = Image.new("RGB", (width, rows * _ROW + 4), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (name, colour) in enumerate(entries):
        x = (i % _LEGEND_COLUMNS) * (width // _LEGEND_COLUMNS)
        y = (i // _LEGEND_COLUMNS) * _ROW + 4
        draw.rectangle((x + 4, y, x + 14, y + 10), fill=tuple(int(c) for c in colour))
        draw.text((x + 18, y - 1), name[:22], fill="black")
    return np.asarray(canvas)
