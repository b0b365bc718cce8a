"""Copy-paste against a picture in which each object has a colour of its own."""

import random
from dataclasses import replace

import numpy as np
import pytest

from datamodules.transforms.copy_paste import copy_paste
from datamodules.transforms.detection import DetectionSample, Patch

SIDE = 64


def sample(objects, *, ground, size=(60, 50)):
    """Rectangles (x1, y1, x2, y2, label), each painted in the colour of its label."""
    image = np.full((*size, 3), ground, np.uint8)
    for x1, y1, x2, y2, label in objects:
        image[y1:y2, x1:x2] = label
    return DetectionSample(
        image=image,
        boxes=np.array([o[:4] for o in objects], np.float32).reshape(-1, 4),
        labels=np.array([o[4] for o in objects], np.int64),
        crowd=np.array([[1, 2, 3, 4]], np.float32),
        masks=[
            Patch(y1, x1, np.ones((y2 - y1, x2 - x1), np.uint8)) for x1, y1, x2, y2, _ in objects
        ],
    )


class Everything(random.Random):
    """Chooses all objects."""

    def randint(self, a, b):
        return b


def pixels(result, i):
    top, left, mask = result.masks[i]
    canvas = np.zeros((SIDE, SIDE), bool)
    canvas[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return canvas


TARGET = sample(
    [(0, 0, 10, 10, 10), (20, 20, 40, 40, 11), (30, 44, 34, 48, 12), (0, 40, 20, 60, 13)], ground=1
)
SOURCE = sample([(30, 15, 62, 50, 20), (4, 42, 6, 44, 21)], ground=2, size=(55, 64))


def test_objects_cover_and_are_covered():
    result = copy_paste(TARGET, SOURCE, side=SIDE, draw=Everything(0))
    # 12 is hidden, half of 11 is, 13 has a hole, 10 is as before.
    assert result.labels.tolist() == [10, 11, 13, 20, 21]
    assert result.boxes.tolist() == [
        [0, 0, 10, 10],
        [20, 20, 30, 40],
        [0, 40, 20, 60],
        [30, 15, 62, 50],
        [4, 42, 6, 44],
    ]
    assert result.image.shape == (SIDE, SIDE, 3)
    for i, label in enumerate(result.labels):
        assert np.array_equal(pixels(result, i), result.image[..., 0] == label)
    assert result.crowd.tolist() == TARGET.crowd.tolist()
    outside = result.image[60:, :30]
    assert not outside.any()  # the target's padding


def test_mostly_hidden_objects_are_dropped():
    """mmdetection's rule: the box moves by more than 10 pixels and at most 300 are left."""
    for right, kept in ((29, False), (34, True), (45, True)):
        source = sample([(10, 10, right, 40, 20)], ground=2)
        target = sample([(10, 10, 40 if right == 34 else 45, 40, 11)], ground=1)
        left = ((40 if right == 34 else 45) - right) * 30
        result = copy_paste(target, source, side=SIDE, draw=Everything(0))
        expected = right - 10 <= 10 or left > 300
        assert (11 in result.labels) == expected, (right, kept)
    small = sample([(10, 10, 20, 20, 11)], ground=1)
    source = sample([(10, 10, 19, 20, 20)], ground=2)
    result = copy_paste(small, source, side=SIDE, draw=Everything(0))
    assert result.boxes[0].tolist() == [19, 10, 20, 20]  # moved by 9


def test_no_box_is_left_empty():
    """Masks may reach over the boxes that come with them."""
    masks = [Patch(10, 10, np.ones((10, 8), np.uint8))]
    target = replace(sample([(10, 10, 14, 20, 11)], ground=1), masks=masks)
    source = sample([(8, 8, 14, 30, 20)], ground=2)
    result = copy_paste(target, source, side=SIDE, draw=Everything(0))
    assert result.labels.tolist() == [20]
    assert len(result.masks) == len(result.boxes) == 1


def test_a_random_part_is_chosen():
    results = [copy_paste(TARGET, SOURCE, side=SIDE, draw=random.Random(i)) for i in range(60)]
    chosen = {tuple(sorted({20, 21} & set(r.labels.tolist()))) for r in results}
    assert chosen == {(), (20,), (21,), (20, 21)}
    again = copy_paste(TARGET, SOURCE, side=SIDE, draw=random.Random(7))
    assert np.array_equal(again.image, results[7].image)
    assert np.array_equal(again.boxes, results[7].boxes)


def test_nothing_to_paste_or_to_cover():
    empty = sample([], ground=3)
    assert copy_paste(TARGET, empty, side=SIDE, draw=Everything(0)) is TARGET
    result = copy_paste(empty, SOURCE, side=SIDE, draw=Everything(0))
    assert result.labels.tolist() == [20, 21]
    assert np.array_equal(result.boxes, SOURCE.boxes)


def test_inputs_are_not_written_to():
    before = [TARGET.image.copy(), *(patch.pixels.copy() for patch in TARGET.masks)]
    copy_paste(TARGET, SOURCE, side=SIDE, draw=Everything(0))
    after = [TARGET.image, *(patch.pixels for patch in TARGET.masks)]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_masks_are_needed():
    bare = DetectionSample(TARGET.image, TARGET.boxes, TARGET.labels, TARGET.crowd, None)
    with pytest.raises(ValueError, match="masks"):
        copy_paste(bare, SOURCE, side=SIDE, draw=random.Random(0))
