"""Predictions to files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image

from datamodules.images import read_image
from gmf_platform.evaluation.drawing import overlay, palette

__all__ = ["SegmentationWriter"]


class SegmentationWriter(BasePredictionWriter):
    """Writes of each image a label picture and an overlay, and once the classes.

    ``NAME.png`` holds the labels 0..K-1 as an 8-bit palette picture, so that it is both exact
    and seen in colour; ``NAME_overlay.jpg`` is the image with the labels over it;
    ``classes.json`` lists label, name and colour.

    Args:
        output: folder to write to.
        names: image file -> name in the folder, without suffix.
        class_names: in label order.
    """

    def __init__(
        self, output: Path, names: Mapping[Path, Path], class_names: Sequence[str]
    ) -> None:
        super().__init__(write_interval="batch")
        self.output = output
        self.names = {str(path): name for path, name in names.items()}
        self.class_names = class_names
        self.colours = palette(len(class_names))

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the legend."""
        self.output.mkdir(parents=True, exist_ok=True)
        legend = [
            {"label": label, "name": name, "colour": self.colours[label].tolist()}
            for label, name in enumerate(self.class_names)
        ]
        if trainer.is_global_zero:
            (self.output / "classes.json").write_text(json.dumps(legend, indent=1) + "\n")

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
        for source, labels in zip(batch["ids"], prediction, strict=True):
            target = self.output / self.names[source]
            target.parent.mkdir(parents=True, exist_ok=True)
            array = labels.cpu().numpy()
            picture = Image.fromarray(array, mode="P")
            picture.putpalette(self.colours.tobytes())
            picture.save(target.with_name(f"{target.name}.png"))
            drawn = overlay(read_image(Path(source)), array, self.colours)
            Image.fromarray(drawn).save(target.with_name(f"{target.name}_overlay.jpg"), quality=92)
