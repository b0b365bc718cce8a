"""Mean IoU, mean accuracy and pixel accuracy from one confusion matrix.

The formulas are mmsegmentation's (IoUMetric): over all pixels of the set, not per image, and
classes that occur in neither truth nor prediction are left out of the means.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric

from gmf_platform.evaluation.class_report import ClassReport

__all__ = ["MeanIoU", "SegmentationScores", "confusion_matrix", "scores_of"]


@dataclass
class SegmentationScores:
    """Scores of a split, as fractions 0..1; NaN for a class that does not occur.

    Attributes:
        miou: mean of ``class_iou``.
        macc: mean of ``class_accuracy``.
        aacc: share of all pixels that are right.
        class_iou: in label order.
        class_accuracy: likewise.
        confusion: int64 (K, K), pixels by true and by predicted label.
    """

    miou: float
    macc: float
    aacc: float
    class_iou: list[float]
    class_accuracy: list[float]
    confusion: Tensor

    def report(self) -> ClassReport:
        """IoU of each class, and which are taken for which."""
        confusion = self.confusion.cpu().numpy()
        return ClassReport(confusion.sum(1).tolist(), {"iou": self.class_iou}, confusion)

    def table(self, class_names: Sequence[str]) -> str:
        """One line a class: name, IoU, accuracy in per cent; ``-`` where it does not occur."""
        width = max(len(name) for name in (*class_names, "class"))
        rows = [f"{'class':<{width}}     IoU     Acc"]
        for name, iou, acc in zip(class_names, self.class_iou, self.class_accuracy, strict=True):
            rows.append(f"{name:<{width}}  {_percent(iou)}  {_percent(acc)}")
        rows.append(f"{'mean':<{width}}  {_percent(self.miou)}  {_percent(self.macc)}")
        return "\n".join(rows)


def confusion_matrix(
    prediction: Tensor, target: Tensor, *, num_classes: int, ignore_index: int = 255
) -> Tensor:
    """Pixels by true and by predicted label, int64 (K, K).

    Args:
        prediction: predicted labels, any integer type and shape.
        target: true labels of the same shape.
        num_classes: K; labels are 0..K-1.
        ignore_index: true label of the pixels that do not count.
    """
    counted = target != ignore_index
    truth, guess = target[counted].long(), prediction[counted].long()
    counts = torch.bincount(truth * num_classes + guess, minlength=num_classes**2)
    return counts.view(num_classes, num_classes)


def scores_of(confusion: Tensor) -> SegmentationScores:
    """The scores of a confusion matrix (K, K)."""
    matrix = confusion.double()
    right, truth, guess = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    iou, accuracy = right / (truth + guess - right), right / truth
    return SegmentationScores(
        miou=iou.nanmean().item(),
        macc=accuracy.nanmean().item(),
        aacc=(right.sum() / truth.sum()).item(),
        class_iou=iou.tolist(),
        class_accuracy=accuracy.tolist(),
        confusion=confusion,
    )


def _percent(fraction: float) -> str:
    return f"{'-':>6}" if math.isnan(fraction) else f"{100 * fraction:6.2f}"


class MeanIoU(Metric):
    """Accumulates a confusion matrix on the device of its inputs.

    The matrix is of integers and summed over processes, so the scores do not depend on how the
    images are dealt out.

    Args:
        num_classes: labels are 0..num_classes-1.
        ignore_index: label of the pixels that do not count.
    """

    confusion: Tensor
    full_state_update = False
    higher_is_better = True

    def __init__(self, num_classes: int, *, ignore_index: int = 255) -> None:
        super().__init__()
        self.num_classes, self.ignore_index = num_classes, ignore_index
        zeros = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("confusion", zeros, dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count an image or a batch.

        Args:
            prediction: predicted labels, any integer type and shape.
            target: true labels of the same shape; ``ignore_index`` does not count.
        """
        self.confusion += confusion_matrix(
            prediction, target, num_classes=self.num_classes, ignore_index=self.ignore_index
        )

    def compute(self) -> SegmentationScores:
        """Scores of all pixels counted so far."""
        return scores_of(self.confusion)
