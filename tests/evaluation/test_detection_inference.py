import numpy as np
import pytest
import torch
from pycocotools import mask as run_lengths

from gmf_platform.errors import UserError
from gmf_platform.evaluation import DetectionInference, DetectionTestTimeAugmentation
from gmf_platform.models.heads import Detections


def finder(*, masks=False, miss_small=False):
    """Finds the red, green and blue rectangles that are drawn in images, as a detector would.

    The score is higher the larger the version; the mask is bright where the rectangle is at its
    left half, so that a mirrored one can be told.
    """

    def model(images, sizes):
        found = []
        for image, (height, width) in zip(images, sizes.tolist(), strict=True):
            boxes, labels = [], []
            for label in range(3):
                rows, columns = torch.nonzero(image[label, :height, :width] > 128, as_tuple=True)
                if len(rows) and not (miss_small and len(rows) < 500):
                    low, high = (columns.min(), rows.min()), (columns.max() + 1, rows.max() + 1)
                    boxes.append([*low, *high])
                    labels.append(label)
            shape = torch.zeros(len(boxes), 28, 28)
            shape[:, :, :14] = 1
            found.append(
                Detections(
                    torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                    torch.full((len(boxes),), min(0.9, height / 400)),
                    torch.tensor(labels, dtype=torch.int64),
                    shape if masks else None,
                )
            )
        return found

    return model


def drawn(scale, rectangles, *, pad=32):
    """A batch of one: an image of 120 x 160 at a scale, with label and rectangle pairs."""
    height, width = round(120 * scale), round(160 * scale)
    images = torch.zeros(1, 3, height + pad, width + pad, dtype=torch.uint8)
    for label, box in rectangles:
        left, top, right, bottom = (round(v * scale) for v in box)
        images[0, label, top:bottom, left:right] = 255
    return {
        "images": images,
        "sizes": torch.tensor([[height, width]]),
        "original_sizes": torch.tensor([[120, 160]]),
    }


RECTANGLES = [(0, [10, 20, 50, 60]), (2, [100, 10, 130, 110])]


def test_once():
    (found,) = DetectionInference().detections(finder(masks=True), drawn(1.5, RECTANGLES))
    np.testing.assert_allclose(found.boxes, [box for _, box in RECTANGLES])
    assert found.labels.tolist() == [0, 2]
    pixels = run_lengths.decode(found.segmentations()[0])
    assert pixels.sum() == 20 * 40  # the left half
    assert pixels[20:60, 10:30].all()


def test_once_refuses_several_scales():
    batch = drawn(1, RECTANGLES) | {"scaled": [drawn(2, RECTANGLES)]}
    with pytest.raises(UserError, match=r"data\.eval_scales gives each image at several scales"):
        DetectionInference().detections(finder(), batch)


def test_mirror_finds_the_same_boxes_and_turns_masks_back():
    plain = DetectionTestTimeAugmentation(flip=False)
    both = DetectionTestTimeAugmentation(flip=True)
    batch = drawn(2, RECTANGLES)
    (one,), (two,) = (x.detections(finder(masks=True), batch) for x in (plain, both))
    np.testing.assert_allclose(one.boxes, two.boxes)
    assert two.labels.tolist() == [0, 2]

    def only_mirrored(images, sizes):
        """Better in the mirror: what is kept comes from there."""
        only_mirrored.calls += 1
        found = finder(masks=True)(images, sizes)
        return [x._replace(scores=x.scores + 0.05 * only_mirrored.calls) for x in found]

    only_mirrored.calls = 0
    (found,) = both.detections(only_mirrored, batch)
    np.testing.assert_allclose(found.boxes, [box for _, box in RECTANGLES])
    pixels = run_lengths.decode(found.segmentations()[0])
    assert pixels[20:60, 30:50].all()  # its left half in the mirror is the right half here
    assert pixels.sum() == 20 * 40


def test_scales_are_merged():
    """Each scale adds what the others miss, and the better one of two equals is kept."""
    rectangles = [*RECTANGLES, (1, [70, 70, 80, 82])]
    versions = [drawn(scale, rectangles) for scale in (1, 2, 2.5)]
    batch = drawn(1, rectangles) | {"scaled": versions}
    tta = DetectionTestTimeAugmentation()
    (found,) = tta.detections(finder(miss_small=True), batch)
    assert sorted(found.labels.tolist()) == [0, 1, 2]
    (small,) = np.flatnonzero(found.labels == 1)
    np.testing.assert_allclose(found.boxes[small], [70, 70, 80, 82], atol=0.3)
    np.testing.assert_allclose(found.scores, 0.75)  # of the largest version


def test_overlap_and_number():
    rectangles = [(0, [10, 20, 50, 60]), (1, [10, 20, 50, 60]), (2, [100, 10, 130, 110])]
    (all_found,) = DetectionTestTimeAugmentation().detections(finder(), drawn(1, rectangles))
    assert sorted(all_found.labels.tolist()) == [0, 1, 2]  # only boxes of one class compete
    (few,) = DetectionTestTimeAugmentation(number=2).detections(finder(), drawn(1, rectangles))
    assert len(few.scores) == 2


def test_batch_mates_do_not_mix():
    """An image without objects beside one with them, of another original size."""
    batch = drawn(1, RECTANGLES)
    batch = {
        "images": torch.cat([torch.zeros_like(batch["images"]), batch["images"]]),
        "sizes": torch.tensor([[60, 60], [120, 160]]),
        "original_sizes": torch.tensor([[30, 30], [240, 320]]),
    }
    empty, found = DetectionTestTimeAugmentation().detections(finder(masks=True), batch)
    assert (len(empty.boxes), empty.rles, empty.size) == (0, [], (30, 30))
    np.testing.assert_allclose(found.boxes, [np.multiply(2, box) for _, box in RECTANGLES])


@pytest.mark.parametrize("setting", [{"max_overlap": 0.0}, {"max_overlap": 1.5}, {"number": 0}])
def test_numbers_out_of_range(setting):
    with pytest.raises(UserError, match=r"model\.inference: "):
        DetectionTestTimeAugmentation(**setting)
