"""Pictures of a fixed set of validation images: image, truth, prediction."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from PIL import Image

from gmf_platform.callbacks.logger import RunLogger
from gmf_platform.evaluation.drawing import comparison

__all__ = ["Pictures"]

Row = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]


class Pictures(Callback):
    """Writes the first validation images with truth and prediction after each validation of a fit.

    They go to TensorBoard and, the newest, to ``pictures/`` in the run's folder.

    Args:
        count: images; 0 for none.
    """

    def __init__(self, count: int = 4) -> None:
        super().__init__()
        self.count = count
        self.path: Path | None = None
        self._rows: list[Row] = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a new sheet."""
        self._rows = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take the first images of the first process: the same ones each time."""
        if not trainer.is_global_zero or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        labels = outputs["labels"]
        for i in range(min(len(labels), self.count - len(self._rows))):
            height, width = batch["sizes"][i].tolist()
            image = batch["images"][i, :, :height, :width].permute(1, 2, 0).cpu().numpy()
            truth, guess = batch["masks"][i].cpu().numpy(), labels[i].cpu().numpy()
            whole = cv2.resize(np.ascontiguousarray(image), truth.shape[::-1])
            self._rows.append((whole.astype(np.uint8, copy=False), truth, guess))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, log and write the sheet."""
        if not self._rows:
            return
        sheet = comparison(self._rows, pl_module.class_names)  # type: ignore[arg-type]
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                step = trainer.global_step - 1  # where Lightning puts the scores
                logger.experiment.add_image("val/pictures", sheet, step, dataformats="HWC")
        self.path = Path(trainer.default_root_dir) / "pictures" / "validation.png"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sheet).save(self.path)
        self._rows = []
