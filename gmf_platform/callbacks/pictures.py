"""Pictures of a fixed set of validation images: image, truth, prediction."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from gmf_platform.callbacks.logger import RunLogger
from gmf_platform.evaluation.drawing import Compared, comparison

__all__ = ["Pictures"]


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
        self._rows: list[Compared] = []

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
        for i in range(min(len(batch["ids"]), self.count - len(self._rows))):
            self._rows.append(pl_module.compared(batch, outputs, i))  # type: ignore[operator]

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
