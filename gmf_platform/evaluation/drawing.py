"""Pictures of labels over images."""

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

__all__ = ["colour_labels", "comparison", "contact_sheet", "overlay", "palette"]

Picture = NDArray[np.uint8]
_IGNORED = (0, 0, 0)
_LEGEND_COLUMNS, _ROW = 6, 18


def palette(num_classes: int) -> Picture:
    """Colours (256, 3) of which neighbours differ: hues by the golden ratio, three lightnesses.

    Labels beyond the classes, the ignored one among them, are black.
    """
    colours = np.zeros((256, 3), dtype=np.uint8)
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


def comparison(
    rows: Sequence[tuple[Picture, Picture, Picture]], class_names: Sequence[str], width: int = 320
) -> Picture:
    """Image, truth and prediction side by side, one row an image, over a legend.

    Args:
        rows: image (H, W, 3), true labels (H, W), predicted labels (H, W).
        class_names: in label order; the legend names the classes that occur.
        width: of each of the three pictures, pixels.
    """
    colours = palette(len(class_names))
    drawn = [_header(width), *(_row(*row, colours, width) for row in rows)]
    present = np.unique(np.concatenate([np.unique(labels) for row in rows for labels in row[1:]]))
    present = present[present < len(class_names)]
    drawn.append(_legend([(class_names[i], colours[i]) for i in present], 3 * width))
    return np.concatenate(drawn)


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


def _row(image: Picture, truth: Picture, guess: Picture, colours: Picture, width: int) -> Picture:
    size = (width, round(width * image.shape[0] / image.shape[1]))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    labels = (cv2.resize(x, size, interpolation=cv2.INTER_NEAREST) for x in (truth, guess))
    painted = (overlay(small, x.astype(np.uint8), colours, 0.7) for x in labels)
    return np.concatenate([small, *painted], axis=1)


def _header(width: int) -> Picture:
    canvas = Image.new("RGB", (3 * width, _ROW), "white")
    for i, title in enumerate(("image", "truth", "prediction")):
        ImageDraw.Draw(canvas).text((i * width + 4, 3), title, fill="black")
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
