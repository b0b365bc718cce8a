"""Semantic segmentation."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from gmf_platform.evaluation import Inference, MeanIoU, SegmentationScores, WholeImage
from gmf_platform.evaluation.class_report import ClassReport
from gmf_platform.evaluation.drawing import Compared, compare_labels, palette
from gmf_platform.evaluation.per_sample import Row, segmentation_row
from gmf_platform.models.heads.kind import check_head
from gmf_platform.models.losses import CrossEntropy
from gmf_platform.models.segmenter import Segmenter
from gmf_platform.ranges import NonNegativeFloat
from gmf_platform.tasks.base import BaseTask, HeadFactory, unpadded

__all__ = ["SegmentationTask"]


class SegmentationTask(BaseTask):
    """Trains a backbone with a decode head, and optionally an auxiliary one.

    Args:
        class_names: in label order; the data gives them.
        backbone: with ``channels`` and ``strides``, images -> feature maps.
        decode_head: makes the head from (channels, number of classes).
        auxiliary_head: likewise; None for none.
        auxiliary_weight: of the auxiliary head's loss.
        loss: (logits, labels) -> scalar, for both heads; None: cross-entropy.
        inference: how images are predicted in validation, test and predict; None: whole.
        training: see BaseTask.
    """

    headline = ("miou", "macc", "aacc")
    model: Segmenter

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        backbone: nn.Module,
        decode_head: HeadFactory,
        auxiliary_head: HeadFactory | None = None,
        auxiliary_weight: NonNegativeFloat = 0.4,
        loss: nn.Module | None = None,
        inference: Inference | None = None,
        **training: Any,
    ) -> None:
        super().__init__(class_names, **training)
        self.build_model(backbone, decode_head, auxiliary_head)
        self.build_losses(loss, auxiliary_weight)
        self.build_metrics()
        self.inference = inference or WholeImage()

    def build_model(
        self, backbone: nn.Module, decode_head: HeadFactory, auxiliary_head: HeadFactory | None
    ) -> None:
        """Backbone, decode head and auxiliary head."""
        channels: Sequence[int] = backbone.channels  # type: ignore[assignment]
        num_classes = len(self.class_names)
        decode = decode_head(channels, num_classes)
        auxiliary = auxiliary_head(channels, num_classes) if auxiliary_head else None
        check_head("model.decode_head", decode, "features")
        if auxiliary is not None:
            check_head("model.auxiliary_head", auxiliary, "features")
        self.model = self.prepared(Segmenter(backbone, decode, auxiliary))

    def build_losses(self, loss: nn.Module | None, auxiliary_weight: float) -> None:
        """One loss for both heads."""
        self.loss = loss or CrossEntropy()
        self.auxiliary_weight = auxiliary_weight

    def build_metrics(self) -> None:
        """A confusion matrix for the split under evaluation."""
        self.mean_iou = MeanIoU(len(self.class_names))
        self.scores: SegmentationScores | None = None

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Losses of a batch: decode head, and weighted auxiliary head."""
        output = self.model(batch["images"], batch["sizes"])
        losses = {"loss_decode": self.loss(output.logits, batch["masks"])}
        if output.auxiliary is not None:
            auxiliary = self.loss(output.auxiliary, batch["masks"])
            losses["loss_auxiliary"] = self.auxiliary_weight * auxiliary
        return losses

    def update_scores(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Count a batch at original size; returns its predicted ``labels``, and ``losses`` if known."""
        labels, losses = self.inference.scored(self.model, batch)
        for predicted, truth in zip(labels, batch["masks"], strict=True):
            self.mean_iou.update(predicted, truth)
        return {"labels": labels, "losses": losses}

    def compute_scores(self) -> dict[str, float]:
        """Mean IoU, mean accuracy of the classes, accuracy of the pixels."""
        self.scores = scores = self.mean_iou.compute()
        self.mean_iou.reset()
        return {"miou": scores.miou, "macc": scores.macc, "aacc": scores.aacc}

    def compared(self, batch: dict[str, Any], outputs: dict[str, Any], index: int) -> Compared:
        """An image of a validation batch beside its true and predicted labels."""
        truth, guess = (x[index].cpu().numpy() for x in (batch["masks"], outputs["labels"]))
        colours = palette(len(self.class_names))
        return compare_labels(unpadded(batch, index), truth, guess, colours)

    def sample_scores(self, batch: dict[str, Any], outputs: dict[str, Any], index: int) -> Row:
        """IoU, accuracy and loss of an image, and its worst class."""
        loss = float(outputs["losses"][index]) if outputs["losses"] else math.nan
        both = outputs["labels"][index], batch["masks"][index]
        return segmentation_row(*both, self.class_names, loss=loss)

    def evaluation_settings(self) -> dict[str, Any]:
        """How the network is applied to an image."""
        return {"inference": type(self.inference).__name__}

    def class_report(self) -> ClassReport | None:
        """IoU and confusion of the classes in the last evaluation."""
        return None if self.scores is None else self.scores.report()

    def score_table(self) -> str:
        """IoU and accuracy of each class in the last evaluation."""
        return "" if self.scores is None else self.scores.table(self.class_names)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[Tensor]:
        """Labels of each image at its original size, uint8 (height, width)."""
        return self.inference.labels(self.model, batch)
