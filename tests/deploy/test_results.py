import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as run_lengths

from gmf_platform.deploy.results import as_result
from gmf_platform.errors import UserError
from gmf_platform.evaluation import ImageDetections, most_probable
from gmf_platform.evaluation.drawing import palette

CLASSES = ["ant", "bee", "cat"]
GREY = np.full((60, 80, 3), 90, np.uint8)


def test_classification():
    (guesses,) = most_probable(torch.tensor([[0.0, 2.0, 1.0]]))
    result = as_result(guesses, GREY, CLASSES)
    assert (result.names, result.labels) == (["bee", "cat", "ant"], [1, 2, 0])
    assert sum(result.probabilities) == pytest.approx(1)
    drawn = np.asarray(result.draw())
    assert np.array_equal(drawn[:60], GREY)
    assert (drawn.shape[0] > 60, drawn.shape[1]) == (True, 80)


def test_segmentation(tmp_path):
    labels = torch.zeros(60, 80, dtype=torch.uint8)
    labels[:15] = 2
    result = as_result(labels, GREY, CLASSES)
    assert result.shares == {"ant": 0.75, "cat": 0.25}
    colours = palette(3)
    drawn = np.asarray(result.draw()).astype(float)
    assert np.abs(drawn[0, 0] - (0.55 * colours[2] + 0.45 * 90)).max() <= 1
    assert np.abs(drawn[-1, 0] - (0.55 * colours[0] + 0.45 * 90)).max() <= 1
    result.picture().save(tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.asarray(picture), labels.numpy())
        assert np.array_equal(np.asarray(picture.convert("RGB")), colours[labels.numpy()])


def found(*, masks):
    pixels = np.zeros((60, 80), np.uint8, order="F")
    pixels[20:50, 10:30] = 1
    rles = [run_lengths.encode(pixels)["counts"]] * 2
    boxes = np.array([[10, 20, 30, 50], [40, 5, 70, 50]], np.float32)
    scores, labels = np.array([0.9, 0.2], np.float32), np.array([1, 2], np.int16)
    return ImageDetections((60, 80), boxes, scores, labels, rles if masks else None)


def test_detection():
    result = as_result(found(masks=True), GREY, CLASSES)
    assert result.names == ["bee", "cat"]
    assert result.boxes[0].tolist() == [10, 20, 30, 50]
    assert result.masks.shape == (2, 60, 80)
    assert result.masks[0, 20:50, 10:30].all()
    assert result.masks[0].sum() == 20 * 30
    assert result.above(0.5).names == ["bee"]
    assert as_result(found(masks=False), GREY, CLASSES).masks is None


def test_weak_detections_are_not_drawn_unless_asked_for():
    result = as_result(found(masks=False), GREY, CLASSES)
    weak = np.s_[25:48, 45:65]  # inside the second box, apart from all text
    shown, all_shown = (np.asarray(result.draw(**x)) for x in ({}, {"min_score": 0.1}))
    edge = np.s_[30, 40]  # on its left edge
    assert np.array_equal(shown[edge], GREY[edge])
    assert not np.array_equal(all_shown[edge], GREY[edge])
    assert np.array_equal(all_shown[weak], GREY[weak])


def test_a_file_is_read_again_to_be_drawn(tmp_path):
    path = tmp_path / "grey.png"
    Image.fromarray(GREY).save(path)
    both = (as_result(found(masks=True), image, CLASSES) for image in (path, GREY))
    first, second = (np.asarray(result.draw()) for result in both)
    assert np.array_equal(first, second)


def test_an_unknown_prediction():
    with pytest.raises(UserError, match="predictions of dict"):
        as_result({}, GREY, CLASSES)
