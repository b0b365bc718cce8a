"""What all writers share: where files go, and the legend."""

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from gmf_platform.evaluation.drawing import palette

__all__ = ["PredictionWriter"]


class PredictionWriter(BasePredictionWriter):
    """Writes the predictions of image files to a folder; ``classes.json`` is the legend.

    A subclass writes one image at a time; what it joins over images it writes in ``finish``.

    Args:
        output: folder to write to.
        names: image file -> name in the folder, without suffix.
        class_names: in label order.

    Attributes:
        suffixes: of the files that an image gets, behind its name.
        what: it writes, in words.
        colours: of the classes, (256, 3).
    """

    suffixes: ClassVar[Sequence[str]]
    what: ClassVar[str]

    def __init__(
        self, output: Path, names: Mapping[Path, Path], class_names: Sequence[str]
    ) -> None:
        super().__init__(write_interval="batch")
        self.output = output
        self.names = {str(path): name for path, name in names.items()}
        self.class_names = class_names
        self.colours = palette(len(class_names))

    @abstractmethod
    def write(self, source: Path, target: Path, prediction: Any) -> None:
        """Write an image's files.

        Args:
            source: the image file.
            target: where its files go, without suffix; the folder exists.
            prediction: what the task's ``predict_step`` says of it.
        """

    def parts(self) -> "Sequence[PredictionWriter]":
        """Those that write files of images: this one."""
        return [self]

    def images(self, prediction: Any) -> Sequence[Any]:
        """What is predicted of each image of a batch."""
        images: Sequence[Any] = prediction
        return images

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the folder."""
        self.output.mkdir(parents=True, exist_ok=True)

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write a batch."""
        for source, predicted in zip(batch["ids"], self.images(prediction), strict=True):
            target = self.output / self.names[source]
            target.parent.mkdir(parents=True, exist_ok=True)
            self.write(Path(source), target, predicted)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the legend, as the sign that all is there."""
        if not trainer.is_global_zero:
            return
        legend = [
            {"label": label, "name": name, "colour": self.colours[label].tolist()}
            for label, name in enumerate(self.class_names)
        ]
        (self.output / "classes.json").write_text(json.dumps(legend, indent=1) + "\n")
