"""Top-1 and top-5 accuracy, loss, and which classes are taken for which."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from gmf_platform.evaluation.class_report import ClassReport, most_frequent
from gmf_platform.evaluation.precision_recall import THRESHOLDS, curve_of_counts

__all__ = ["ClassificationScores", "Guesses", "TopK", "most_probable"]

MOST_CONFUSABLE = 1000
"""Classes up to which a confusion matrix and curves are counted: 8 MB and 2 MB on the device."""

MOST_WRITTEN = 100
"""Classes up to which the matrix is written as a table: beyond, nobody reads it."""

_ROWS = 20
_UNIT = 2**24
"""Losses are summed as whole multiples of 1 / _UNIT, so that the sum is exact in any order. That is
below the resolution of float32 for any loss from 0.5, and 10^10 images do not fill 63 bits."""


class Guesses(NamedTuple):
    """The most probable classes of an image, the first first.

    Attributes:
        labels: int64 (k,).
        probabilities: float32 (k,).
    """

    labels: Tensor
    probabilities: Tensor

    def named(self, class_names: Sequence[str]) -> list[tuple[str, float]]:
        """Class names with their probabilities."""
        pairs = zip(self.labels.tolist(), self.probabilities.tolist(), strict=True)
        return [(class_names[label], probability) for label, probability in pairs]


def most_probable(logits: Tensor, *, count: int = 5) -> list[Guesses]:
    """The ``count`` most probable classes, or all if they are fewer, of each of logits (B, K)."""
    best = logits.float().softmax(1).topk(min(count, logits.shape[1]))
    return [Guesses(*pair) for pair in zip(best.indices, best.values, strict=True)]


@dataclass
class ClassificationScores:
    """Scores of a split; fractions are 0..1.

    Attributes:
        top1: share of the images whose most probable class is the true one.
        top5: share of those where it is among the five most probable; None for up to five
            classes, of which it would always be 1.
        macc: top-1 of each class that occurs, averaged over classes.
        loss: mean cross-entropy, without smoothing.
        images: number of images of each class.
        right: of them, those whose most probable class is the true one.
        confusion: int64 (K, K), images by true and by most probable class; None for more than
            1000 classes.
        reached: int64 (2, K, THRESHOLDS), images of the class and others, by the last threshold
            that its probability reaches; None likewise.
    """

    top1: float
    top5: float | None
    macc: float
    loss: float
    images: list[int]
    right: list[int]
    confusion: Tensor | None
    reached: Tensor | None

    def report(self) -> ClassReport:
        """Top-1 of each class, which are taken for which, and curves of the probability."""
        pairs = zip(self.right, self.images, strict=True)
        top1 = [right / count if count else math.nan for right, count in pairs]
        report = ClassReport(self.images, {"top1": top1})
        if self.confusion is not None and self.reached is not None:
            report.confusion = self.confusion.numpy()
            positive, negative = self.reached.numpy()
            report.curves["probability"] = {
                label: curve_of_counts(positive[label], negative[label])
                for label in most_frequent(self.images)
            }
        return report

    @property
    def is_confusion_written(self) -> bool:
        """Whether the confusion matrix is known, and not larger than anyone reads as a table."""
        return self.confusion is not None and len(self.images) <= MOST_WRITTEN

    def confusion_csv(self, class_names: Sequence[str]) -> str:
        """The confusion matrix as a table: a row for each true class, a column for each predicted.

        Args:
            class_names: in label order.
        """
        assert self.confusion is not None
        text = StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["true \\ predicted", *class_names])
        for name, row in zip(class_names, self.confusion.tolist(), strict=True):
            table.writerow([name, *row])
        return text.getvalue()

    def table(self, class_names: Sequence[str]) -> str:
        """The 20 worst classes: name, images, top-1 in per cent, and what they are taken for."""
        seen = [label for label, count in enumerate(self.images) if count]
        worst = sorted(seen, key=lambda label: self.right[label] / self.images[label])[:_ROWS]
        width = max(len(class_names[label]) for label in [*worst, 0])
        width = max(width, len("class"))
        rows = [f"{'class':<{width}}  images   top-1  most often taken for"]
        for label in worst:
            share = 100 * self.right[label] / self.images[label]
            name = f"{class_names[label]:<{width}}  {self.images[label]:>6}  {share:6.2f}"
            rows.append(f"{name}  {self._taken_for(label, class_names)}".rstrip())
        if len(seen) > len(worst):
            rows.append(f"... and {len(seen) - len(worst)} better ones")
        return "\n".join(rows)

    def _taken_for(self, label: int, class_names: Sequence[str]) -> str:
        if self.confusion is None:
            return ""
        others = self.confusion[label].clone()
        others[label] = 0
        count = int(others.max())
        return f"{class_names[int(others.argmax())]} ({count})" if count else ""


class TopK(Metric):
    """Counts on the device of its inputs what `ClassificationScores` are computed from.

    All counts are integers and summed over processes, so the scores do not depend on how the
    images are dealt out.

    Args:
        num_classes: labels are 0..num_classes-1.
    """

    right: Tensor
    images: Tensor
    right5: Tensor
    loss: Tensor
    unbounded: Tensor
    confusion: Tensor
    reached: Tensor
    full_state_update = False
    higher_is_better = True

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.is_confusion_kept = num_classes <= MOST_CONFUSABLE
        shapes: dict[str, tuple[int, ...]] = {
            "right": (num_classes,),
            "images": (num_classes,),
            "right5": (),
            "loss": (),
            "unbounded": (),
            "confusion": (num_classes, num_classes) if self.is_confusion_kept else (),
            "reached": (2, num_classes, THRESHOLDS) if self.is_confusion_kept else (),
        }
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch.

        Args:
            logits: (B, K).
            labels: true classes, int64 (B,).
        """
        logits = logits.float()
        best = logits.topk(min(5, self.num_classes)).indices
        hits = best == labels[:, None]
        self.images += torch.bincount(labels, minlength=self.num_classes)
        self.right += torch.bincount(labels[hits[:, 0]], minlength=self.num_classes)
        self.right5 += hits.any(1).sum()

        losses = F.cross_entropy(logits, labels, reduction="none")
        bounded = losses.isfinite()
        self.loss += (losses.where(bounded, 0.0) * _UNIT).round().long().sum()
        self.unbounded += (~bounded).sum()
        if self.is_confusion_kept:
            pairs = labels * self.num_classes + best[:, 0]
            counts = torch.bincount(pairs, minlength=self.num_classes**2)
            self.confusion += counts.view(self.num_classes, self.num_classes)
            self._count_reached(logits, labels)

    def _count_reached(self, logits: Tensor, labels: Tensor) -> None:
        """Count each image for each class at the last threshold that its probability reaches."""
        last = (logits.softmax(1).nan_to_num() * (THRESHOLDS - 1)).long()
        places = last + torch.arange(self.num_classes, device=labels.device) * THRESHOLDS
        size = self.num_classes * THRESHOLDS
        everyone = torch.bincount(places.flatten(), minlength=size)
        positive = torch.bincount(places.gather(1, labels[:, None])[:, 0], minlength=size)
        self.reached += torch.stack([positive, everyone - positive]).view_as(self.reached)

    def compute(self) -> ClassificationScores:
        """Scores of all images counted so far; NaN where there are none."""
        images, right = self.images.cpu().double(), self.right.cpu().double()
        total = images.sum()
        loss = self.loss.cpu().double() / _UNIT / total
        return ClassificationScores(
            top1=(right.sum() / total).item(),
            top5=(self.right5.cpu() / total).item() if self.num_classes > 5 else None,
            macc=(right / images).nanmean().item(),
            loss=math.nan if self.unbounded else loss.item(),
            images=self.images.tolist(),
            right=self.right.tolist(),
            confusion=self.confusion.cpu() if self.is_confusion_kept else None,
            reached=self.reached.cpu() if self.is_confusion_kept else None,
        )
