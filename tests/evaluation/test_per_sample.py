import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gmf_platform.evaluation import ImageDetections
from gmf_platform.evaluation.per_sample import (
    classification_row,
    detection_row,
    segmentation_row,
)

NAMES = ["cat", "dog", "hen"]


def test_classification():
    row = classification_row(torch.tensor([0.0, math.log(3.0), -math.inf]), 0, NAMES)
    assert row == {
        "truth": "cat",
        "predicted": "dog",
        "top1": 0,
        "probability": pytest.approx(0.25),
        "predicted_probability": pytest.approx(0.75),
        "loss": pytest.approx(math.log(4)),
    }
    assert classification_row(torch.tensor([0.0, 1.0, 5.0]), 2, NAMES)["top1"] == 1


def test_segmentation():
    truth = torch.tensor([[0, 0, 1, 1], [0, 0, 255, 255]])
    guess = torch.tensor([[0, 0, 0, 1], [0, 0, 2, 2]])
    # cat 4 of 5 pixels, dog 1 of 2; hen is only where nothing counts.
    assert segmentation_row(guess, truth, NAMES, loss=0.25) == {
        "iou": pytest.approx((4 / 5 + 1 / 2) / 2),
        "accuracy": pytest.approx(5 / 6),
        "worst_class": "dog",
        "worst_iou": pytest.approx(1 / 2),
        "loss": pytest.approx(0.25),
    }


def test_of_equally_bad_classes_the_largest_is_the_worst():
    truth = torch.tensor([[1, 2, 2, 0]])
    assert segmentation_row(torch.zeros(1, 4), truth, NAMES)["worst_class"] == "hen"


def test_nothing_to_score():
    ignored = torch.full((2, 2), 255)
    row = segmentation_row(torch.zeros(2, 2, dtype=torch.uint8), ignored, NAMES)
    assert math.isnan(row["iou"])
    assert row["worst_class"] == ""
    row = detection_row(found([]), truth([]), NAMES, masks=False, backend="pycocotools")
    assert row["objects"] == 0
    assert math.isnan(row["box_ap"])


def found(objects, rles=None):
    boxes = np.array([o[0] for o in objects], np.float32).reshape(-1, 4)
    labels = np.array([o[1] for o in objects], np.int16)
    scores = np.array([o[2] for o in objects], np.float32)
    codes = None if rles is None else [rle["counts"] for rle in rles]
    return ImageDetections((64, 64), boxes, scores, labels, codes)


def truth(objects, rles=None):
    return {
        "boxes": torch.tensor([o[0] for o in objects], dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor([o[1] for o in objects], dtype=torch.int64),
        "crowd": torch.tensor([o[2] for o in objects], dtype=torch.bool),
    } | ({} if rles is None else {"rles": rles})


def filled(box):
    mask = np.zeros((64, 64), np.uint8, order="F")
    left, top, right, bottom = map(round, box)
    mask[top:bottom, left:right] = 1
    return run_lengths.encode(mask)


def random_objects(draw, count):
    corners = draw.uniform(0, 40, (count, 2))
    boxes = np.concatenate([corners, corners + draw.uniform(4, 24, (count, 2))], 1).round(1)
    return boxes.tolist(), draw.integers(0, 3, count).tolist()


def reference(kind, true, guessed, image):
    """pycocotools over a set of images, asked for one of them."""
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i, "height": 64, "width": 64} for i in (1, 2)],
        "annotations": true,
    }
    coco.dataset["categories"] = [{"id": i} for i in range(3)]
    coco.createIndex()
    results = coco.loadRes(deepcopy(guessed))  # which adds to them
    evaluation = COCOeval(coco, results, kind)
    evaluation.params.imgIds = [image]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[:2]


@pytest.mark.parametrize("backend", ["pycocotools", "faster-coco-eval"])
@pytest.mark.parametrize("seed", range(4))
def test_detection_is_pycocotools_of_one_image(seed, backend):
    draw = np.random.default_rng(seed)
    true, guessed, parts = [], [], {}
    for image in (1, 2):
        boxes, labels = random_objects(draw, 6)
        moved = [[x + draw.normal(0, 2) for x in box] for box in boxes]
        more, others = random_objects(draw, 3)
        scores = draw.uniform(0.1, 1, 9).round(3).tolist()
        objects = [
            (box, label, i == 5) for i, (box, label) in enumerate(zip(boxes, labels, strict=True))
        ]
        guesses = list(zip(moved + more, labels + others, scores, strict=True))
        guesses = [([round(x, 1) for x in box], label, score) for box, label, score in guesses]
        parts[image] = objects, guesses
        for box, label, crowd in objects:
            size = box[2] - box[0], box[3] - box[1]
            row = {"id": len(true) + 1, "image_id": image, "category_id": label}
            row |= {"bbox": [*box[:2], *size], "area": size[0] * size[1], "iscrowd": int(crowd)}
            true.append(row | {"segmentation": filled(box)})
        for box, label, score in guesses:
            row = {"image_id": image, "category_id": label, "score": score}
            row["bbox"] = [*box[:2], box[2] - box[0], box[3] - box[1]]
            guessed.append(row)
    masks = [
        {"segmentation": filled(b), **g}
        for g, b in zip(guessed, [g[0] for p in parts.values() for g in p[1]], strict=True)
    ]
    masks = [{k: v for k, v in m.items() if k != "bbox"} for m in masks]
    for image, (objects, guesses) in parts.items():
        row = detection_row(
            found(guesses, [filled(g[0]) for g in guesses]),
            truth(objects, [filled(o[0]) for o in objects]),
            NAMES,
            masks=True,
            backend=backend,
        )
        assert row["objects"] == 5
        box = reference("bbox", true, guessed, image)
        assert (row["box_ap"], row["box_ap50"]) == pytest.approx(tuple(box), abs=1e-5)
        mask = reference("segm", true, masks, image)
        assert (row["mask_ap"], row["mask_ap50"]) == pytest.approx(tuple(mask), abs=1e-5)
        assert 0 < row["mask_ap"] < 1


def test_worst_class_of_detection():
    objects = [([0, 0, 10, 10], 0, False), ([20, 20, 40, 40], 2, False)]
    guesses = [([0, 0, 10, 10], 0, 0.9), ([50, 50, 60, 60], 1, 0.8)]
    row = detection_row(found(guesses), truth(objects), NAMES, masks=False, backend="pycocotools")
    assert (row["worst_class"], row["worst_ap"]) == ("hen", 0)
    assert row["box_ap"] == pytest.approx(0.5)
