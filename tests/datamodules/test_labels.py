"""Names of classes, and what the values in masks mean."""

from pathlib import Path

import numpy as np
import pytest

from datamodules.images import DataError, Flaw
from datamodules.labels import IGNORE, LabelCode, read_class_names

MASK = Path("mask.png")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("wall\nsky\n", ["wall", "sky"]),
        ("1 wall\n2 traffic light\n", ["wall", "traffic light"]),
        ("\nwall, side\n\n7\n", ["wall", "7"]),
        ("Idx\tRatio\tName\n1\t0.5\twall\n2\t0.1\tbox, case\n", ["wall", "box"]),
    ],
)
def test_read_class_names(tmp_path, text, names):
    path = tmp_path / "classes.txt"
    path.write_text(text)
    assert read_class_names(path) == names


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_values_become_labels(kind):
    code = LabelCode([3, 1, 7], [0, 255])
    values = np.array([[0, 1, 3], [7, 255, 1]], kind)
    labels = code.labels(values, MASK)
    assert labels.dtype == np.uint8
    assert labels.tolist() == [[IGNORE, 1, 0], [2, IGNORE, 1]]


def test_colours_become_labels():
    code = LabelCode([0x010203, 0xFFFFFF], [0], is_colour=True)
    labels = code.labels(np.array([[0xFFFFFF, 0, 0x010203]], np.int32), MASK)
    assert labels.tolist() == [[1, IGNORE, 0]]
    assert code.name(0x010203) == "(1, 2, 3)"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ([5], "label 5,"),
        ([5, 9, 5], "labels 9, 5,"),
        (range(4, 14), "labels 13, 12, 11, 10, 9 ...,"),
    ],
)
def test_values_outside_are_named(wrong, named):
    with pytest.raises(DataError) as said:
        LabelCode([0, 1]).labels(np.array([[0, 1, *wrong]], np.uint8), MASK)
    assert str(said.value).startswith(f"mask.png: has {named} but there are 2 classes (labels 0..1")
    assert said.value.flaw is Flaw.LABEL


def test_all_254_classes():
    labels = LabelCode(range(254), [255]).labels(np.arange(254, dtype=np.uint8)[None], MASK)
    assert labels.tolist() == [list(range(254))]


def test_label_of_one_value():
    code = LabelCode([3, 1], [255])
    assert [code.label_of(value) for value in (1, 3, 255, 2, 65535)] == [1, 0, IGNORE, None, None]
