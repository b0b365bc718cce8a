"""Pictures of what whole images were taken for."""

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gmf_platform.evaluation.drawing import WIDTH, Compared, Picture

__all__ = ["Guess", "captioned", "compare_classes"]

Guess = tuple[str, float]
"""A class name and its probability."""

_RIGHT, _WRONG = (34, 139, 34), (205, 55, 40)
_LETTER = 16
"""Height of the letters beside a picture, pixels."""


def compare_classes(
    image: Picture, truth: str, guesses: Sequence[Guess], *, width: int = WIDTH
) -> Compared:
    """An image (H, W, 3) beside its true class and its most probable ones.

    Args:
        image: of any size; it is drawn ``width`` pixels wide.
        truth: name of the class.
        guesses: the most probable first; the true one is green, others are red.
        width: of each of the three, pixels.
    """
    height = max(round(width * image.shape[0] / image.shape[1]), 5 * _LETTER)
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    named = _panel([(truth, None)], [_RIGHT], width, height)
    colours = [_RIGHT if name == truth else _WRONG for name, _ in guesses]
    guessed = _panel(guesses, colours, width, height)
    return Compared(np.concatenate([small.astype(np.uint8), named, guessed], axis=1), set())


def captioned(image: Picture, guesses: Sequence[Guess]) -> Picture:
    """An image (H, W, 3) over a strip that names its most probable classes."""
    height, width = image.shape[:2]
    letter = max(_LETTER, height // 30)
    strip = _panel(
        guesses, [(0, 0, 0)] * len(guesses), width, round(1.6 * letter * len(guesses)), letter
    )
    return np.concatenate([image, strip])


def _panel(
    lines: Sequence[tuple[str, float | None]],
    colours: Sequence[tuple[int, int, int]],
    width: int,
    height: int,
    letter: int = _LETTER,
) -> Picture:
    """Names on white, each before a bar as long as its probability."""
    canvas = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(letter)
    for i, ((name, probability), colour) in enumerate(zip(lines, colours, strict=True)):
        y = round(1.6 * letter * i)
        text = name if probability is None else f"{probability:6.1%}  {name}"
        if probability is not None:
            pale = tuple(255 - (255 - channel) // 4 for channel in colour)
            draw.rectangle((0, y, probability * width, y + 1.4 * letter), fill=pale)
        draw.text((letter // 2, y), text, fill=colour, font=font)
    return np.asarray(canvas)
