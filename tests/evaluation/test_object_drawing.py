import numpy as np
import pytest
import torch
from pycocotools import mask as run_lengths

from gmf_platform.evaluation import ImageDetections
from gmf_platform.evaluation.drawing import (
    compare_detections,
    comparison,
    draw_truth,
    palette,
)
from gmf_platform.evaluation.object_drawing import draw_objects, found_objects, true_objects

COLOURS = palette(5)
GREY = (160, 160, 160)


def mask_of(box, size):
    pixels = np.zeros(size, np.uint8, order="F")
    left, top, right, bottom = box
    pixels[top:bottom, left:right] = 1
    return run_lengths.encode(pixels)


@pytest.fixture
def image():
    return np.full((120, 160, 3), 100, np.uint8)


def changed(before, after):
    """Left, top, right, bottom of what differs."""
    rows, columns = np.nonzero((before != after).any(axis=2))
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_box_is_drawn_at_its_edges(image):
    truth = {"boxes": [[20, 30, 60, 90]], "labels": [2]}
    drawn = draw_truth(image, truth, COLOURS)
    assert changed(image, drawn) == [20, 30, 60, 90]
    assert (drawn[30, 20:60] == COLOURS[2]).all()
    assert (drawn[31:89, 21:59] == 100).all()  # nothing inside
    assert (image == 100).all()  # the image given stays as it is


def test_tensors_and_no_objects(image):
    truth = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    assert np.array_equal(draw_truth(image, truth, COLOURS), image)
    truth = {"boxes": torch.tensor([[20.0, 30, 60, 90]]), "labels": torch.tensor([2])}
    assert changed(image, draw_truth(image, truth, COLOURS)) == [20, 30, 60, 90]


def test_mask_is_translucent_with_an_outline(image):
    size = image.shape[:2]
    rle = mask_of([30, 40, 50, 80], size)
    truth = {"boxes": [[20, 30, 60, 90]], "labels": [1], "rles": [rle]}
    drawn = draw_truth(image, truth, COLOURS)
    mixed = np.round(0.6 * 100 + 0.4 * COLOURS[1].astype(float))
    assert (drawn[45:75, 35:45] == mixed).all()
    assert (drawn[40, 30:50] == COLOURS[1]).all()
    assert (drawn[32:38, 22:58] == 100).all()


def test_crowds_are_grey_and_named(image):
    truth = {"boxes": [[20, 30, 60, 90]], "labels": [1], "crowd": [True]}
    drawn = draw_truth(image, truth, COLOURS)
    assert (drawn[89, 20:60] == GREY).all()
    assert changed(image, drawn)[1] < 30  # the word stands above
    assert true_objects(truth, (120, 160)).labels == [-1]


def test_objects_are_scaled_to_the_picture(image):
    found = ImageDetections(
        (240, 480),
        np.array([[60, 60, 180, 180]], np.float32),
        np.array([0.9], np.float32),
        np.array([3], np.int16),
        [mask_of([60, 60, 180, 180], (240, 480))["counts"]],
    )
    objects = found_objects(found, min_score=0.5)._replace(texts=[""])
    assert changed(image, draw_objects(image, objects, COLOURS)) == [20, 30, 60, 90]


def test_small_objects_are_on_top(image):
    boxes = [[50, 50, 60, 60], [20, 30, 100, 110]]
    rles = [mask_of(box, image.shape[:2]) for box in boxes]
    drawn = draw_truth(image, {"boxes": boxes, "labels": [0, 1], "rles": rles}, COLOURS)
    assert (drawn[50, 50:60] == COLOURS[0]).all()


@pytest.mark.parametrize("corner", [[0, 0, 159, 119], [150, 2, 159, 60], [2, 110, 159, 119]])
def test_text_stays_inside(image, corner):
    found = ImageDetections(
        (120, 160), np.array([corner], np.float32), np.ones(1, np.float32), np.zeros(1, np.int16)
    )
    objects = found_objects(found, min_score=0.5, class_names=["a long name"])
    assert objects.texts == ["a long name 1.00"]
    drawn = draw_objects(image, objects, COLOURS)
    bare = draw_objects(image, objects._replace(texts=[""]), COLOURS)
    left, top, right, bottom = changed(bare, drawn)
    assert right - left > 60  # the whole name
    assert bottom - top > 6
    assert drawn.shape == image.shape


def detections():
    return ImageDetections(
        (240, 320),
        np.array([[40, 60, 120, 180], [200, 20, 300, 100]], np.float32),
        np.array([0.9, 0.2], np.float32),
        np.array([0, 3], np.int16),
    )


def test_comparison_of_truth_and_prediction(image):
    truth = {"boxes": [[44, 60, 120, 180], [10, 10, 40, 40]], "labels": [4, 0]}
    row = compare_detections(image, truth, detections(), width=160)
    assert row.labels == {0, 4}  # what scores too little is not there
    plain, true, guessed = np.split(row.picture, 3, axis=1)
    assert np.array_equal(plain, image)
    assert (true[30, 22:60] == COLOURS[4]).all()
    assert (guessed[89, 20:60] == COLOURS[0]).all()
    assert compare_detections(image, truth, detections(), min_score=0.1).labels == {0, 3, 4}
    sheet = comparison([row], [f"class {i}" for i in range(5)])
    assert sheet.shape == (18 + 120 + 22, 480, 3)


def test_nothing_to_compare(image):
    nothing = detections().above(2)
    row = compare_detections(image, {"boxes": [], "labels": []}, nothing, width=160)
    assert row.labels == set()
    assert all(np.array_equal(part, image) for part in np.split(row.picture, 3, axis=1))


def test_colours_for_many_classes():
    colours = palette(1203)
    assert colours.shape == (1203, 3)
    assert np.array_equal(colours[:80], palette(80)[:80])
