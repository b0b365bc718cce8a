"""Pictures of labels."""

import numpy as np
import pytest

from gmf_platform.evaluation.drawing import (
    colour_labels,
    compare_labels,
    comparison,
    contact_sheet,
    overlay,
    palette,
)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.mark.parametrize("num_classes", [11, 150])
def test_palette_is_distinct(num_classes):
    colours = palette(num_classes)
    assert colours.shape == (256, 3)
    assert len(np.unique(colours[:num_classes], axis=0)) == num_classes
    assert colours[:num_classes].any(axis=1).all()  # black is for what is no class
    assert not colours[num_classes:].any()


def test_neighbours_differ_well():
    colours = palette(150)[:150].astype(int)
    assert np.abs(np.diff(colours, axis=0)).max(axis=1).min() > 60


def test_colour_labels():
    colours = palette(3)
    picture = colour_labels(np.array([[0, 2], [255, 1]], dtype=np.uint8), colours)
    assert np.array_equal(picture[0, 1], colours[2])
    assert np.array_equal(picture[1, 0], [0, 0, 0])


def test_overlay_mixes_known_and_leaves_ignored(image):
    labels = np.full((40, 60), 255, dtype=np.uint8)
    labels[:, 30:] = 1
    colours = palette(3)
    painted = overlay(image, labels, colours, 0.25)
    assert painted.dtype == np.uint8
    assert np.array_equal(painted[:, :30], image[:, :30])
    mixed = 0.25 * colours[1] + 0.75 * image[:, 30:]
    assert np.abs(painted[:, 30:] - mixed).max() <= 0.5 + 1e-6


@pytest.mark.parametrize(("classes", "legend_rows"), [(2, 1), (6, 1), (7, 2)])
def test_comparison_size(image, classes, legend_rows):
    truth = np.arange(40 * 60, dtype=np.uint8).reshape(40, 60) % classes
    colours = palette(10)
    rows = [compare_labels(image[:n], truth[:n], truth[:n], colours, width=90) for n in (40, 30)]
    sheet = comparison(rows, [f"class {i}" for i in range(10)])
    assert sheet.dtype == np.uint8
    assert sheet.shape == (18 + 60 + 45 + 18 * legend_rows + 4, 270, 3)


def test_comparison_shows_image_truth_and_prediction(image):
    truth, guess = np.zeros((2, 40, 60), dtype=np.uint8)
    guess += 1
    row = compare_labels(image, truth, guess, palette(2), width=60)
    sheet = comparison([row], ["a", "b"])
    colours = palette(2)
    parts = sheet[18:58, :60], sheet[18:58, 60:120], sheet[18:58, 120:]
    expected = image, overlay(image, truth, colours, 0.7), overlay(image, guess, colours, 0.7)
    assert all(np.array_equal(a, b) for a, b in zip(parts, expected, strict=True))


def test_comparison_of_only_ignored_pixels(image):
    nothing = np.full((40, 60), 255, dtype=np.uint8)
    row = compare_labels(image, nothing, nothing, palette(2), width=60)
    sheet = comparison([row], ["a", "b"])
    assert np.array_equal(sheet[18:58, 60:120], image)


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (4, 1), (5, 2)])
def test_contact_sheet_holds_each_picture_whole(count, rows):
    colours = [np.array([10 * i + 20, 0, 0], np.uint8) for i in range(count)]
    sizes = [(30, 40), (90, 40), (30, 40), (30, 120), (30, 40)]
    pictures = [np.full((*size, 3), c, np.uint8) for size, c in zip(sizes, colours, strict=False)]
    tiles = [(f"{i}.jpg", picture) for i, picture in enumerate(pictures)]
    sheet = contact_sheet(tiles, [("sky", np.array([0, 0, 200], np.uint8))], width=80)
    assert sheet.shape == (rows * (60 + 18) + 22, 320, 3)  # titles and a legend of one row
    for colour, (height, width) in zip(colours, sizes, strict=False):
        factor = min(80 / width, 60 / height)
        drawn = (sheet == colour).all(-1).sum()
        assert drawn == round(height * factor) * round(width * factor)
    assert (sheet[-22:] == [0, 0, 200]).all(-1).sum() > 50
