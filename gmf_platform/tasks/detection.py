"""Object detection and instance segmentation."""

import math
from collections.abc import Sequence
from typing import Any

from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn

from gmf_platform.evaluation import (
    CocoBackend,
    CocoEvaluator,
    CocoScores,
    DetectionInference,
    ImageDetections,
)
from gmf_platform.evaluation.class_report import ClassReport
from gmf_platform.evaluation.drawing import Compared, compare_detections
from gmf_platform.evaluation.per_sample import Row, detection_row
from gmf_platform.models.detector import Detector
from gmf_platform.models.heads.kind import check_head
from gmf_platform.tasks.base import BaseTask, HeadFactory, unpadded

__all__ = ["DetectionTask"]


class DetectionTask(BaseTask):
    """Trains a backbone with a detection head.

    A score is of the images that were looked at: with ``trainer.limit_val_batches`` of those
    alone, and what is missed on the others does not count.

    Args:
        class_names: in label order; the data gives them.
        backbone: with ``channels`` and ``strides``, images -> feature maps.
        head: makes the head, its neck included, from (channels, number of classes).
        inference: how images are predicted in validation, test and predict; None: once, at the
            data's scale.
        backend: who computes COCO's scores; the numbers are the same.
        training: see BaseTask.
    """

    headline = ("box_ap", "box_ap50", "mask_ap", "mask_ap50")
    model: Detector

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        backbone: nn.Module,
        head: HeadFactory,
        inference: DetectionInference | None = None,
        backend: CocoBackend = "faster-coco-eval",
        **training: Any,
    ) -> None:
        super().__init__(class_names, **training)
        self.build_model(backbone, head)
        self.build_metrics(backend)
        self.inference = inference or DetectionInference()

    def build_model(self, backbone: nn.Module, head: HeadFactory) -> None:
        """Backbone and head; the head brings its losses, which touch parameters of it."""
        channels: Sequence[int] = backbone.channels  # type: ignore[assignment]
        made = head(channels, len(self.class_names))
        check_head("model.head", made, "features", "sizes", "targets")
        self.model = self.prepared(Detector(backbone, made))

    def build_metrics(self, backend: CocoBackend) -> None:
        """The evaluator is made for the split under evaluation, when one begins."""
        self.backend = backend
        self.evaluator: CocoEvaluator | None = None
        self.scores: CocoScores | None = None

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The head's losses."""
        losses: dict[str, Tensor] = self.model(batch["images"], batch["sizes"], batch["targets"])
        return losses

    def begin_scores(self, data: Any, split: str) -> None:
        """Make an evaluator for a split of the data."""
        truth = data.ground_truth(split, masks=self.with_masks)
        self.evaluator = CocoEvaluator(
            truth.annotation_file,
            image_ids=truth.image_ids,
            category_ids=truth.category_ids,
            class_names=truth.class_names,
            masks=self.with_masks,
            backend=self.backend,
        )

    def update_scores(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Count a batch; returns its ``detections`` on the original images."""
        assert self.evaluator is not None
        detections = self.predict_step(batch, 0)
        for image_id, found in zip(batch["ids"], detections, strict=True):
            self.evaluator.update(image_id, found)
        return {"detections": detections}

    def compute_scores(self) -> dict[str, float]:
        """COCO's numbers that are defined.

        AP is among them in any case, since a run's best checkpoint is chosen by it.
        """
        assert self.evaluator is not None
        self.scores = scores = self.evaluator.compute()
        self.evaluator.reset()
        always = ("box_ap", "mask_ap")
        return {n: x for n, x in scores.values.items() if n in always or not math.isnan(x)}

    def compared(self, batch: dict[str, Any], outputs: dict[str, Any], index: int) -> Compared:
        """An image of a validation batch beside its objects and what was found."""
        truth = move_data_to_device(batch["truth"][index], "cpu")
        found: ImageDetections = outputs["detections"][index]
        return compare_detections(unpadded(batch, index), truth, found)

    def sample_scores(self, batch: dict[str, Any], outputs: dict[str, Any], index: int) -> Row:
        """AP of an image, and its worst class."""
        return detection_row(
            outputs["detections"][index],
            move_data_to_device(batch["truth"][index], "cpu"),
            self.class_names,
            masks=self.with_masks,
            backend=self.backend,
        )

    @property
    def main_score(self) -> str:
        """AP of the masks, or of the boxes of a head without."""
        return "mask_ap" if self.with_masks else "box_ap"

    @property
    def with_masks(self) -> bool:
        """Whether the head predicts masks beside boxes."""
        return bool(getattr(self.model.head, "mask_heads", ()))

    def evaluation_settings(self) -> dict[str, Any]:
        """How the network is applied to an image, and who computes the scores."""
        return {"inference": type(self.inference).__name__, "backend": self.backend}

    def class_report(self) -> ClassReport | None:
        """AP and curves of the classes in the last evaluation."""
        return None if self.scores is None else self.scores.report()

    def score_table(self) -> str:
        """AP of each class in the last evaluation."""
        return "" if self.scores is None else self.scores.table(self.class_names)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[ImageDetections]:
        """What is found on each image, in its original pixels."""
        return self.inference.detections(self.model, batch)

    def facts(self, data: Any) -> dict[str, Any]:
        """The data's number of each class too: COCO's results name classes by it."""
        facts = super().facts(data)
        if data is not None:
            facts["category_ids"] = data.ground_truth("validation").category_ids
        return facts
