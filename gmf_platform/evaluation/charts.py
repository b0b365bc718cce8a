"""Scores of classes as pictures: bars, and which are taken for which."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from gmf_platform.evaluation.class_report import most_frequent

__all__ = ["confusion_chart", "most_confused", "score_chart"]

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]

MOST_BARS, _ROWS = 200, 50
MOST_CONFUSED, _MOST_NUMBERED = 25, 25
_LETTER, _LINE = 12, 18
_NAME, _BAR, _NUMBER = 150, 160, 44
_INK, _PALE, _BLUE = (30, 30, 30), (235, 235, 235), (70, 120, 190)
_RIGHT, _WRONG = (34, 139, 34), (205, 55, 40)


def score_chart(
    class_names: Sequence[str], scores: Sequence[float], counts: Sequence[int]
) -> Picture:
    """A bar for each class, the most frequent first, so that each stays in its place.

    Of more than 200 classes the worst, the worst first.

    Args:
        class_names: in label order.
        scores: of each, 0..1; without a bar where NaN.
        counts: how often each occurs; those that never do are left out.
    """
    labels = most_frequent(counts, len(counts))
    if len(labels) > MOST_BARS:
        labels = sorted(labels, key=lambda label: scores[label])[:MOST_BARS]
    columns = max(1, math.ceil(len(labels) / _ROWS))
    rows = max(1, math.ceil(len(labels) / columns))
    width = _NAME + _BAR + _NUMBER
    canvas = Image.new("RGB", (columns * width, rows * _LINE + 6), "white")
    draw = ImageDraw.Draw(canvas)
    for number, label in enumerate(labels):
        corner = number // rows * width, number % rows * _LINE + 3
        _bar(draw, corner, class_names[label], scores[label])
    return np.array(canvas)


def _bar(draw: ImageDraw.ImageDraw, corner: tuple[int, int], name: str, score: float) -> None:
    x, y = corner
    font = ImageFont.load_default(_LETTER)
    right, base = x + _NAME, y + _LINE - 4
    draw.text((right - 6, y), _short(name, font, _NAME - 10), _INK, font, anchor="ra")
    draw.rectangle((right, y, right + _BAR, base), fill=_PALE)
    if not math.isnan(score):
        draw.rectangle((right, y, right + round(_BAR * score), base), fill=_BLUE)
        draw.text((right + _BAR + 6, y), f"{100 * score:.1f}", _INK, font)


def most_confused(confusion: NDArray[np.int64], number: int = MOST_CONFUSED) -> list[int]:
    """Labels of the classes that are most often taken for each other, pairs side by side.

    Args:
        confusion: (K, K), counts by true and by predicted class.
        number: of labels; all of them, in their order, if they are not more.
    """
    if len(confusion) <= number:
        return list(range(len(confusion)))
    errors = confusion.copy()
    np.fill_diagonal(errors, 0)
    labels: dict[int, None] = {}
    for place in np.argsort(-errors, axis=None, kind="stable")[: number**2]:
        pair = divmod(int(place), len(confusion))
        if errors[pair] == 0 or len({*labels, *pair}) > number:
            break
        labels |= dict.fromkeys(pair)
    return list(labels)


def confusion_chart(class_names: Sequence[str], confusion: NDArray[np.int64]) -> Picture:
    """Which classes are taken for which: a row for each true class, a column for each predicted.

    Cells are shares of all that is of the row's class, in per cent: green on the diagonal, red
    beside it. Of more than 25 classes those that are confused most.

    Args:
        class_names: in label order.
        confusion: (K, K), counts by true and by predicted class.
    """
    labels = most_confused(confusion)
    names = [class_names[label] for label in labels]
    totals = confusion.sum(1, keepdims=True)
    shares = (confusion / np.maximum(totals, 1))[np.ix_(labels, labels)]
    cell, font = 30, ImageFont.load_default(_LETTER)
    edge = _NAME + _LINE
    canvas = Image.new(
        "RGB", (edge + len(labels) * cell + 4, edge + len(labels) * cell + 4), "white"
    )
    draw = ImageDraw.Draw(canvas)
    draw.text((edge - 6, edge - _LINE), "true \\ predicted", _INK, font, anchor="ra")
    for i, name in enumerate(names):
        middle = edge + i * cell + cell // 2
        draw.text((edge - 6, middle), _short(name, font, _NAME), _INK, font, anchor="rm")
        canvas.paste(_upright(_short(name, font, _NAME), font), (middle - _LINE // 2, 2))
        for j, share in enumerate(shares[i].tolist()):
            _cell(draw, (edge + j * cell, edge + i * cell), cell, share, is_right=i == j)
    return np.array(canvas)


def _cell(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], size: int, share: float, *, is_right: bool
) -> None:
    x, y = corner
    colour = _RIGHT if is_right else _WRONG
    # The root, since shares of a few per cent are what one looks for.
    strength = math.sqrt(share)
    mixed = tuple(round(255 - strength * (255 - channel)) for channel in colour)
    draw.rectangle((x, y, x + size - 1, y + size - 1), fill=mixed, outline=_PALE)
    if share >= 0.005:
        ink = "white" if strength > 0.7 else _INK
        font = ImageFont.load_default(_LETTER)
        draw.text((x + size // 2, y + size // 2), f"{100 * share:.0f}", ink, font, anchor="mm")


def _upright(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Image.Image:
    """Text that reads from below, over the full height of the head."""
    strip = Image.new("RGB", (_NAME + _LINE - 8, _LINE), "white")
    ImageDraw.Draw(strip).text((0, 2), text, _INK, font)
    return strip.rotate(90, expand=True)


def _short(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """As much of a text as fits into a width, pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
