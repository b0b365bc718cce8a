"""Scores of single images, to find those that a model is worst at."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gmf_platform.evaluation.coco import CocoBackend, accumulate, measured_masks
from gmf_platform.evaluation.coco_scores import Kind, class_values
from gmf_platform.evaluation.detection import ImageDetections
from gmf_platform.evaluation.mean_iou import confusion_matrix, scores_of

__all__ = [
    "DECISIVE",
    "Row",
    "classification_row",
    "decisive_score",
    "detection_row",
    "segmentation_row",
]

Row = dict[str, str | int | float]
"""Scores of an image by name; NaN where one is not defined."""

DECISIVE = ("iou", "mask_ap", "box_ap", "probability")
"""What images are sorted by, here and in `show`: the first that a row has; small is bad."""


def decisive_score(row: Row) -> tuple[str, float] | None:
    """Name and value of the score of `DECISIVE` that a row has; None if it has no defined one."""
    for name in DECISIVE:
        if name in row:
            value = float(row[name])
            return None if math.isnan(value) else (name, value)
    return None


def classification_row(logits: Tensor, label: int, class_names: Sequence[str]) -> Row:
    """Truth, guess, whether they agree, and how probable each was.

    Args:
        logits: (K,).
        label: the true class.
        class_names: in label order.
    """
    logits = logits.detach().float().cpu()
    probabilities = logits.softmax(0)
    guess = int(logits.argmax())
    return {
        "truth": class_names[label],
        "predicted": class_names[guess],
        "top1": int(guess == label),
        "probability": probabilities[label].item(),
        "predicted_probability": probabilities[guess].item(),
        "loss": F.cross_entropy(logits, torch.tensor(label)).item(),
    }


def segmentation_row(
    predicted: Tensor, truth: Tensor, class_names: Sequence[str], *, loss: float = math.nan
) -> Row:
    """Mean IoU over the classes in truth or prediction, the share of right pixels, worst class, loss.

    Args:
        predicted: labels (H, W).
        truth: labels (H, W); 255 does not count.
        class_names: in label order.
        loss: of the image; NaN: not known.
    """
    scores = scores_of(confusion_matrix(predicted, truth, num_classes=len(class_names)))
    row: Row = {"iou": scores.miou, "accuracy": scores.aacc}
    pixels = scores.confusion.sum(1).tolist()
    return row | _worst(scores.class_iou, class_names, "worst_iou", counts=pixels) | {"loss": loss}


def detection_row(
    found: ImageDetections,
    truth: Mapping[str, Any],
    class_names: Sequence[str],
    *,
    masks: bool,
    backend: CocoBackend,
) -> Row:
    """COCO's AP of the image alone, over the classes that its objects have.

    Args:
        found: on the original image, with ``rles`` where masks are scored.
        truth: ``boxes`` (N, 4), ``labels`` (N,), ``crowd`` (N,), and for masks ``rles``.
        class_names: in label order.
        masks: score masks too; they then decide the worst class.
        backend: who matches.
    """
    num_objects = int((~truth["crowd"]).sum())
    categories = sorted({*truth["labels"].tolist(), *found.labels.tolist()})
    values: dict[str, list[float]] = {}
    kinds: tuple[Kind, ...] = ("box", "mask") if masks else ("box",)
    for kind in kinds:
        values |= _class_values(kind, found, truth, categories, backend) if num_objects else {}
    row: Row = {"objects": num_objects}
    for name in (f"{kind}_{number}" for kind in kinds for number in ("ap", "ap50")):
        row[name] = _mean(values.get(name, []))
    names = [class_names[label] for label in categories]
    counts = [int((truth["labels"] == label).sum()) for label in categories]
    return row | _worst(values.get(f"{kinds[-1]}_ap", []), names, "worst_ap", counts=counts)


def _class_values(
    kind: Kind,
    found: ImageDetections,
    truth: Mapping[str, Any],
    categories: Sequence[int],
    backend: CocoBackend,
) -> dict[str, list[float]]:
    """AP and AP50 of each category on one image."""
    boxes, labels = truth["boxes"].tolist(), truth["labels"].tolist()
    true = _rows(boxes, labels, truth["rles"] if kind == "mask" else None)
    for row, is_crowd in zip(true, truth["crowd"].tolist(), strict=True):
        row["iscrowd"] = int(is_crowd)
    boxes, labels = found.boxes.tolist(), found.labels.tolist()
    predicted = _rows(boxes, labels, found.segmentations() if kind == "mask" else None)
    for row, score in zip(predicted, found.scores.tolist(), strict=True):
        row["score"] = score
    json = {
        "images": [{"id": 1, "height": found.size[0], "width": found.size[1]}],
        "annotations": true,
        "categories": [{"id": label} for label in categories],
    }
    return class_values(kind, accumulate(kind, json, predicted, categories, backend))


def _rows(
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int],
    rles: Sequence[dict[str, Any]] | None,
) -> list[dict[str, Any]]:
    """Annotations of image 1 as COCO has them, numbered from 1."""
    rows = []
    for number, (box, label) in enumerate(zip(boxes, labels, strict=True), 1):
        left, top, right, bottom = box
        size = [right - left, bottom - top]
        row = {"id": number, "image_id": 1, "category_id": label, "iscrowd": 0}
        rows.append(row | {"bbox": [left, top, *size], "area": size[0] * size[1]})
    return rows if rles is None else measured_masks(rows, rles)


def _worst(
    values: Sequence[float], class_names: Sequence[str], title: str, *, counts: Sequence[int]
) -> Row:
    """The class of the smallest value, and that value; of several, that which the truth has most of."""
    # No values at all where nothing is defined.
    rows = zip(values, (-count for count in counts), class_names, strict=False)
    defined = [row for row in rows if not math.isnan(row[0])]
    value, _, name = min(defined, default=(math.nan, 0, ""))
    return {"worst_class": name, title: value}


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
