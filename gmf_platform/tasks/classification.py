"""Image classification."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from gmf_platform.evaluation import ClassificationScores, Guesses, TopK, most_probable
from gmf_platform.evaluation.class_pictures import compare_classes
from gmf_platform.evaluation.class_report import ClassReport
from gmf_platform.evaluation.class_titles import titled
from gmf_platform.evaluation.drawing import Compared
from gmf_platform.evaluation.per_sample import Row, classification_row
from gmf_platform.models.batch_augment import BatchAugment
from gmf_platform.models.classifier import Classifier
from gmf_platform.models.heads import ClassificationHead
from gmf_platform.models.heads.kind import check_head
from gmf_platform.models.losses import SoftTargetCrossEntropy
from gmf_platform.tasks.base import BaseTask, HeadFactory, unpadded

__all__ = ["ClassificationTask"]


class ClassificationTask(BaseTask):
    """Trains a backbone with a classification head.

    Args:
        class_names: in label order; the data gives them.
        backbone: with ``channels`` and ``strides``, images -> feature maps.
        head: makes the head from (channels, number of classes).
        batch_augment: mixup, CutMix and random erasing of training batches; None: none.
        loss: (logits, probabilities or labels) -> scalar; None: cross-entropy without smoothing.
        training: see BaseTask.
    """

    headline = ("top1", "top5", "macc", "loss")
    model: Classifier

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        backbone: nn.Module,
        head: HeadFactory = ClassificationHead,
        batch_augment: BatchAugment | None = None,
        loss: nn.Module | None = None,
        **training: Any,
    ) -> None:
        super().__init__(class_names, **training)
        self.build_model(backbone, head)
        self.build_losses(loss)
        self.build_metrics()
        self.batch_augment = batch_augment

    def build_model(self, backbone: nn.Module, head: HeadFactory) -> None:
        """Backbone and head."""
        channels: Sequence[int] = backbone.channels  # type: ignore[assignment]
        made = head(channels, len(self.class_names))
        check_head("model.head", made, "features")
        self.model = self.prepared(Classifier(backbone, made))

    def build_losses(self, loss: nn.Module | None) -> None:
        """The loss of training; evaluation has plain cross-entropy."""
        self.loss = loss or SoftTargetCrossEntropy()

    def build_metrics(self) -> None:
        """Counts of the split under evaluation."""
        self.top_k = TopK(len(self.class_names))
        self.scores: ClassificationScores | None = None

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Loss of a batch, changed by ``batch_augment``."""
        images, targets = batch["images"], batch["labels"]
        if self.batch_augment is None:
            logits = self.model(images)
        else:
            change = self.batch_augment.draw(images)
            logits = self.model(images, change.of_images)
            targets = change.of_labels(targets, len(self.class_names))
        return {"loss_class": self.loss(logits, targets)}

    def update_scores(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Count a batch; returns its ``logits`` (B, K)."""
        logits = self.model(batch["images"])
        self.top_k.update(logits, batch["labels"])
        return {"logits": logits}

    def compute_scores(self) -> dict[str, float]:
        """Top-1, accuracy averaged over classes, loss, and of many classes top-5."""
        self.scores = scores = self.top_k.compute()
        self.top_k.reset()
        named = {"top1": scores.top1, "macc": scores.macc, "loss": scores.loss}
        if scores.top5 is not None:
            named["top5"] = scores.top5
        return named

    @cached_property
    def titles(self) -> list[str]:
        """The classes' names as people read them."""
        return titled(self.class_names)

    def compared(self, batch: dict[str, Any], outputs: dict[str, Any], index: int) -> Compared:
        """An image of a validation batch beside its class and the three most probable ones."""
        (guesses,) = most_probable(outputs["logits"][index, None], count=3)
        truth = self.titles[int(batch["labels"][index])]
        return compare_classes(unpadded(batch, index), truth, guesses.named(self.titles))

    def sample_scores(self, batch: dict[str, Any], outputs: dict[str, Any], index: int) -> Row:
        """Truth and guess of an image, with their probabilities, and its loss."""
        label = int(batch["labels"][index])
        return classification_row(outputs["logits"][index], label, self.titles)

    def class_report(self) -> ClassReport | None:
        """Top-1, confusion and curves of the classes in the last evaluation."""
        return None if self.scores is None else self.scores.report()

    def score_table(self) -> str:
        """The worst classes of the last evaluation."""
        return "" if self.scores is None else self.scores.table(self.titles)

    def score_files(self) -> dict[str, str]:
        """The confusion matrix, of up to 100 classes."""
        if self.scores is None or not self.scores.is_confusion_written:
            return {}
        return {"confusion.csv": self.scores.confusion_csv(self.titles)}

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[Guesses]:
        """The five most probable classes of each image."""
        return most_probable(self.model(batch["images"]))
