"""What the values in a mask file mean, and what the classes are called."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np

from datamodules.images import (
    ColourMap,
    DataError,
    Flaw,
    Image8,
    LabelMap,
    read_colours,
    read_mask,
)
from gmf_platform.errors import UserError

__all__ = ["IGNORE", "MAX_CLASSES", "LabelCode", "check_class_names", "read_class_names"]

IGNORE = 255  # the label of pixels without a class, as everywhere in the field
_OUTSIDE = 254  # in a table of labels: the value means nothing
MAX_CLASSES = _OUTSIDE  # labels are 8 bits wide, so 0..253 are classes

Values: TypeAlias = LabelMap | ColourMap


class LabelCode:
    """How the values in a mask file become the labels 0..K-1 and IGNORE.

    Args:
        classes: the values of the classes, in the order of the labels.
        ignored: values of pixels without a class.
        is_colour: values are colours, R * 65536 + G * 256 + B, and masks are read as such.
    """

    def __init__(
        self, classes: Iterable[int], ignored: Iterable[int] = (), *, is_colour: bool = False
    ) -> None:
        self.classes, self.ignored = list(classes), sorted(ignored)
        self.is_colour = is_colour

    @cached_property
    def table(self) -> Image8:
        """The label of each value there can be."""
        table = np.full(1 << 24 if self.is_colour else 1 << 16, _OUTSIDE, dtype=np.uint8)
        table[self.ignored] = IGNORE
        table[self.classes] = np.arange(len(self.classes))
        return table

    def read(self, path: Path) -> Values:
        """The values of a mask file.

        Raises:
            DataError: see `read_mask` and `read_colours`.
        """
        return read_colours(path) if self.is_colour else read_mask(path)

    def labels(self, values: Values, path: Path) -> Image8:
        """The labels of a mask's values (H, W).

        Raises:
            DataError: values that are neither a class nor ignored, named with the file.
        """
        # OpenCV's table look-up takes a fraction of the time of numpy's indexing.
        is_byte = values.dtype == np.uint8
        labels = cv2.LUT(values, self.table[:256]) if is_byte else self.table[values]
        outside = labels == _OUTSIDE
        if outside.any():
            raise DataError(f"{path}: {self._said_of(values[outside])}", flaw=Flaw.LABEL)
        return labels.astype(np.uint8, copy=False)

    def label_of(self, value: int) -> int | None:
        """The label of one value; None outside the classes."""
        label = int(self.table[value])
        return None if label == _OUTSIDE else label

    def name(self, value: int) -> str:
        """A value as people write it."""
        if self.is_colour:
            return str((value >> 16, value >> 8 & 255, value & 255))
        return str(value)

    def _said_of(self, wrong: np.ndarray) -> str:
        found = np.unique(wrong)[::-1]
        what = ("colour" if self.is_colour else "label") + "s"[: len(found) > 1]
        named = ", ".join(self.name(int(value)) for value in found[:5])
        named += " ..." if len(found) > 5 else ""
        if self.is_colour:
            return f"has {what} {named}, not in data.palette ({wrong.size} pixels)"
        ignored = " and ".join(map(str, self.ignored)) or "none"
        return (
            f"has {what} {named}, but there are {len(self.classes)} classes (labels "
            f"{self.classes[0]}..{self.classes[-1]}, {ignored} = ignored); data.classes names them"
        )


def check_class_names(names: Sequence[str]) -> None:
    """Check the number of classes.

    Raises:
        UserError: fewer than 2, or more than 8-bit labels can tell.
    """
    if not 2 <= len(names) <= MAX_CLASSES:
        raise UserError(
            f"data.classes: {len(names)} classes; 2 to {MAX_CLASSES} are possible, so that the "
            f"labels fit into 8 bits beside the ignored one"
        )


def read_class_names(path: Path) -> list[str]:
    """Class names from a text file: objectInfo150.txt's columns, or one name a line.

    A line may begin with the class's number, as in ``3 sky``. Of several names of a class
    ("building, edifice") the first is taken.

    Raises:
        UserError: the file is missing or empty.
    """
    if not path.is_file():
        raise UserError(f"data.classes: no file {path}; give a text file with one name a line")
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    if lines and lines[0].split("\t")[0] == "Idx":
        names = [line.split("\t")[-1] for line in lines[1:]]
    else:
        names = [_without_number(line.strip()) for line in lines]
    if not names:
        raise UserError(f"data.classes: {path} is empty; one class name a line is expected")
    return [name.split(",")[0].strip() for name in names]


def _without_number(line: str) -> str:
    number, _, rest = line.partition(" ")
    return rest.strip() if number.isdigit() and rest else line
