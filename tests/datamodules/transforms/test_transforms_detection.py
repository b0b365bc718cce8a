"""Geometry of detection: sizes by mmcv's rule, boxes and masks that follow the pixels."""

import random
from collections import Counter

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from datamodules.coco_json import read_coco
from datamodules.transforms.detection import ScaleJitter, ShortSide, View, place, rescaled
from gmf_platform.errors import UserError

RGB = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
SQUARE = [np.array([[30.0, 10], [50, 10], [50, 20], [30, 20]])]


def placed(view, box, *, outlines=None, crowd=False):
    return place(
        view,
        boxes=np.array([box], np.float32),
        labels=np.array([4]),
        crowd=np.array([crowd]),
        outlines=outlines,
    )


def whole(patch, size):
    mask = np.zeros(size, np.uint8)
    top, left, pixels = patch
    mask[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return mask


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),  # 1066.67
        ((640, 480), (1067, 800)),
        ((427, 640), (800, 1199)),  # 1199.06
        ((300, 640), (625, 1333)),  # the long side binds
        ((1600, 2000), (800, 1000)),
        ((5, 6000), (1, 1333)),
    ],
)
def test_sizes_by_mmcv(size, expected):
    assert rescaled(size, 800, 1333) == expected


def test_resize_is_opencv_bilinear():
    view = View(RGB).resized((40, 33))
    assert np.array_equal(view.image, cv2.resize(RGB, (33, 40), interpolation=cv2.INTER_LINEAR))
    assert view.boxes(np.array([[9.0, 6, 45, 60]], np.float32)) == pytest.approx(
        np.array([[3.3, 4, 16.5, 40]])
    )


def test_boxes_and_masks_follow_the_pixels():
    """A picture of the object itself goes through the same steps."""
    painted = np.zeros((60, 90, 3), np.uint8)
    painted[10:20, 30:50] = 255
    view = View(painted).resized((120, 180)).cropped(11, 25, (90, 140)).flipped()
    sample = placed(view, [30, 10, 50, 20], outlines=[SQUARE])
    rows, columns = np.nonzero(view.image[..., 0] > 127)
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert sample.boxes.tolist() == [box]
    assert np.array_equal(whole(sample.masks[0], (90, 140)), view.image[..., 0] > 127)
    assert sample.labels.tolist() == [4]


def test_run_lengths_give_the_same_mask_as_polygons():
    bitmap = np.zeros((60, 90), np.uint8)
    bitmap[10:20, 30:50] = 1
    rle = coco_mask.encode(np.asfortranarray(bitmap))
    for view in (
        View(RGB),
        View(RGB).resized((120, 180)),
        View(RGB).resized((30, 45)).flipped(),
        View(RGB).resized((120, 180)).cropped(30, 70, (90, 25)),
    ):
        by_runs, by_polygon = view.mask(dict(rle)), view.mask(SQUARE)
        assert np.array_equal(whole(by_runs, view.size), whole(by_polygon, view.size))
        assert by_runs.pixels.any()


def test_boxes_are_clipped_and_slivers_dropped():
    view = View(RGB).cropped(20, 40, (30, 30))  # x 40..70, y 20..50 of the file
    assert placed(view, [30, 10, 50, 90]).boxes.tolist() == [[0, 0, 10, 30]]
    for outside in ([0, 0, 40.9, 50], [69.5, 20, 90, 50], [50, 0, 60, 20], [45, 49.2, 60, 60]):
        sample = placed(view, outside)
        assert (sample.boxes.shape, sample.labels.shape) == ((0, 4), (0,))
    crowd = placed(view, [30, 10, 50, 90], crowd=True)
    assert (crowd.crowd.tolist(), len(crowd.boxes)) == ([[0, 0, 10, 30]], 0)
    assert placed(view, [0, 0, 40.9, 50], crowd=True).crowd.shape == (0, 4)


def test_objects_without_a_pixel_become_crowds():
    view = View(RGB)
    thin = [np.array([[30.0, 10.6], [50, 10.6], [50, 10.7]])]  # covers no pixel's centre
    for outline in ([], thin):
        sample = placed(view, [30, 10, 50, 20], outlines=[outline])
        assert (len(sample.boxes), sample.masks) == (0, [])
        assert sample.crowd.tolist() == [[30, 10, 50, 20]]


@pytest.mark.parametrize("scale", [1.0, 0.37, 1.7])
def test_random_polygons_equal_pycocotools(scale):
    draw = np.random.default_rng(1)
    for _ in range(40):
        rings = [
            draw.uniform((0, 0), (90, 60), (draw.integers(3, 12), 2)).round(2) for _ in range(2)
        ]
        view = View(RGB).resized((round(60 * scale), round(90 * scale)))
        height, width = view.size
        moved = [(ring * (width / 90, height / 60)).round(6) for ring in rings]
        flat = [ring.ravel().tolist() for ring in moved]
        expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(flat, height, width)))
        assert np.array_equal(whole(view.mask(rings), view.size), expected)


@pytest.mark.data
def test_real_polygons_equal_pycocotools(real_data):
    path = real_data("coco_mini") / "annotations/instances_val2017.json"
    read = read_coco(path, with_masks=True)
    seen = 0
    for i in range(len(read)):
        view = View(np.empty((*read.size(i), 3), np.uint8))
        for outline, rle in zip(read.outlines(i), read.targets(i).rles, strict=True):
            seen += 1
            assert np.array_equal(whole(view.mask(outline), view.size), coco_mask.decode(rle))
    assert seen > 700


def draws(transform, number=400, image=RGB):
    return [transform(image, random.Random(i)) for i in range(number)]


def test_the_1x_recipe():
    views = draws(ShortSide((80,), 133), 200)
    assert {view.size for view in views} == {(80, 120)}
    flipped = [view.x[0] < 0 for view in views]
    assert 70 < sum(flipped) < 130
    plain = views[flipped.index(False)]
    assert np.array_equal(views[flipped.index(True)].image, plain.image[:, ::-1])
    assert not any(view.x[0] < 0 for view in draws(ShortSide((80,), 133, flip=0.0), 20))


def test_the_3x_recipe():
    image = np.zeros((480, 640, 3), np.uint8)
    shorts = list(range(480, 801, 32))
    views = draws(ShortSide(shorts, 1333, crop_branch=True), 240, image)
    cropped = [view for view in views if abs(view.size[1] / view.size[0] - 4 / 3) > 0.01]
    assert 80 < len(cropped) < 140  # half, but for those that still look whole
    counts = Counter(min(view.size) for view in views if max(view.size) < 1333)
    assert set(counts) == set(shorts)
    assert all(max(view.size) <= 1333 for view in views)
    assert any(view.size[0] > view.size[1] for view in cropped)
    assert ShortSide(shorts, 1333, crop_branch=True).turns
    # What is seen of the file: sides of 384..600 pixels at a short side of 400, 500 or 600.
    for view in cropped:
        height, width = (
            edge / abs(axis[0]) for edge, axis in zip(view.size, (view.y, view.x), strict=True)
        )
        fits = [
            384 <= round(height * short / 480) <= 600 and 384 <= round(width * short / 480) <= 600
            for short in (400, 500, 600)
        ]
        assert any(fits)


def test_large_scale_jitter():
    views = draws(ScaleJitter(0.1, 2.0, side=128))
    assert all(max(view.size) <= 128 for view in views)
    fit = 128 / 90  # the factor at which the whole image fills the square
    factors = np.array([abs(view.x[0]) / fit for view in views])
    assert 0.09 < factors.min() < 0.15
    assert 1.95 < factors.max() < 2.01
    assert abs(factors.mean() - 1.05) < 0.1  # uniform
    assert any(view.size[1] == 128 and view.x[1] < 0 < view.x[0] for view in views)  # cropped


@pytest.mark.parametrize("transform", [ShortSide((64, 80), 133), ScaleJitter(0.1, 2.0, 100)])
@pytest.mark.parametrize("image", [RGB, RGB.transpose(1, 0, 2).copy()])
def test_nothing_is_larger_than_the_largest(transform, image):
    largest = transform.largest(image.shape[:2])
    sizes = [view.size for view in draws(transform, 100, image)]
    assert all(height <= largest[0] and width <= largest[1] for height, width in sizes)


def test_settings_that_make_no_sense():
    for make in (
        lambda: ShortSide((), 1333),
        lambda: ShortSide((0, 800), 1333),
        lambda: ScaleJitter(0.0, 2.0),
        lambda: ScaleJitter(2.0, 0.1),
    ):
        with pytest.raises(UserError, match=r"data\."):
            make()
