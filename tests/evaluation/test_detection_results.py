import tracemalloc

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as run_lengths
from torch.nn import functional as F

from gmf_platform.evaluation import ImageDetections, at_original_size
from gmf_platform.evaluation.detection import encode_mask
from gmf_platform.models.heads import Detections


def detections(boxes, masks=None):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    scores = torch.linspace(0.9, 0.1, len(boxes))
    labels = torch.arange(len(boxes))
    return Detections(boxes, scores, labels, masks)


def pasted_by_mmdetection(mask, box, size):
    """Values at all pixels by its formula: grid_sample at the pixels' centres."""
    left, top, right, bottom = box
    y = (torch.arange(size[0]) + 0.5 - top) / (bottom - top) * 2 - 1
    x = (torch.arange(size[1]) + 0.5 - left) / (right - left) * 2 - 1
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)[None].float()
    return F.grid_sample(torch.from_numpy(mask)[None, None], grid, align_corners=False)[0, 0]


def decoded(code, size):
    return run_lengths.decode({"size": list(size), "counts": code}).astype(bool)


def smooth_mask(draw, side=28):
    """Probabilities with edges somewhere inside."""
    small = draw.random((5, 5)).astype(np.float32)
    return cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC).clip(0, 1)


BOXES = [
    [10.3, 20.7, 61.2, 45.5],
    [0, 0, 97, 73],  # the whole image
    [40, 10, 44.5, 70.2],
    [-0.0, 3.25, 12.75, 73],
    [20, 0, 60, 73],  # full height, where runs go on in the next column
    [90.1, 60.2, 97, 73],
    [30.2, 30.2, 30.9, 31.4],  # smaller than a pixel
    [50.5, 20.5, 60.5, 30.5],  # edges at the centres of pixels
]


@pytest.mark.parametrize("box", BOXES)
def test_masks_as_mmdetection_pastes_them(box):
    size, draw = (73, 97), np.random.default_rng(0)
    for mask in [*(smooth_mask(draw) for _ in range(8)), np.ones((28, 28), np.float32)]:
        values = pasted_by_mmdetection(mask, box, size).numpy()
        ours = decoded(encode_mask(mask, box, size=size), size)
        clear = np.abs(values - 0.5) > 1e-4
        assert np.array_equal(ours[clear], values[clear] >= 0.5)
    assert clear.mean() > 0.9


@pytest.mark.parametrize("box", BOXES)
def test_code_is_that_of_pycocotools(box):
    size, draw = (73, 97), np.random.default_rng(1)
    masks = [*(smooth_mask(draw) for _ in range(8)), np.zeros((28, 28), np.float32)]
    for mask in masks:
        code = encode_mask(mask, box, size=size)
        pixels = np.asfortranarray(decoded(code, size).astype(np.uint8))
        assert run_lengths.encode(pixels)["counts"] == code


def test_whole_image_and_empty_box():
    ones = np.ones((28, 28), np.float32)
    assert decoded(encode_mask(ones, [0, 0, 9, 7], size=(7, 9)), (7, 9)).all()
    assert not decoded(encode_mask(ones, [3, 3, 3, 3], size=(7, 9)), (7, 9)).any()
    assert not decoded(encode_mask(ones, [9, 7, 9, 7], size=(7, 9)), (7, 9)).any()


def test_boxes_are_scaled_and_clipped():
    """From 200 x 100 (resized) to 400 x 150 (original); the padding does not matter."""
    found = at_original_size(
        detections([[10, 20, 30, 40], [-5, -5, 103, 207]]),
        size=(200, 100),
        original_size=(400, 150),
    )
    np.testing.assert_allclose(found.boxes, [[15, 40, 45, 80], [0, 0, 150, 400]], rtol=1e-6)
    np.testing.assert_allclose(found.scores, [0.9, 0.1], rtol=1e-6)
    assert found.labels.tolist() == [0, 1]
    assert (found.rles, found.segmentations(), found.size) == (None, [], (400, 150))
    assert [x.dtype for x in found[1:4]] == [np.float32, np.float32, np.int16]


def test_masks_land_where_their_boxes_do():
    half = torch.zeros(1, 28, 28)
    half[:, :, :14] = 1  # the left half of the box
    found = at_original_size(
        detections([[10, 20, 50, 40]], half), size=(100, 100), original_size=(200, 300)
    )
    (segmentation,) = found.segmentations()
    pixels = run_lengths.decode(segmentation)
    wanted = np.zeros((200, 300), np.uint8)
    wanted[40:80, 30:90] = 1
    np.testing.assert_array_equal(pixels, wanted)


def test_no_detection():
    found = at_original_size(
        detections([], torch.zeros(0, 28, 28)), size=(10, 10), original_size=(20, 20)
    )
    assert found.boxes.shape == (0, 4)
    assert found.rles == []


def test_what_is_not_a_number_is_dropped():
    raw = detections([[0, 0, 5, 5], [0, float("nan"), 5, 5], [1, 1, 6, 6]], torch.ones(3, 28, 28))
    raw.scores[2] = float("inf")
    found = at_original_size(raw, size=(10, 10), original_size=(10, 10))
    assert found.labels.tolist() == [0]
    assert len(found.rles) == 1


def test_above():
    found = at_original_size(
        detections([[0, 0, 5, 5], [1, 1, 6, 6]], torch.ones(2, 28, 28)),
        size=(10, 10),
        original_size=(10, 10),
    )
    few = found.above(0.5)
    assert isinstance(few, ImageDetections)
    assert (len(few.boxes), few.labels.tolist(), few.rles) == (1, [0], found.rles[:1])


def test_half_precision_and_gradients():
    raw = detections([[1, 2, 5, 5]], torch.ones(1, 28, 28, requires_grad=True))
    raw = raw._replace(boxes=raw.boxes.bfloat16(), scores=raw.scores.bfloat16())
    found = at_original_size(raw, size=(10, 10), original_size=(20, 20))
    np.testing.assert_array_equal(found.boxes, [[2, 4, 10, 10]])


def test_memory_on_large_photographs():
    """100 masks of up to the whole of 4000 x 3000 pixels stay under 64 MB."""
    draw = np.random.default_rng(0)
    masks = torch.from_numpy(np.stack([smooth_mask(draw) for _ in range(100)]))
    boxes = [[0, 0, 1333, 1000]] * 2 + [[100, 100, 160, 180]] * 98
    tracemalloc.start()
    found = at_original_size(
        detections(boxes, masks), size=(1000, 1333), original_size=(3000, 4000)
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.rles) == 100
    assert peak < 64e6
