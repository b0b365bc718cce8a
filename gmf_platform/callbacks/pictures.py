"""Pictures of a fixed set of validation images: image, truth, prediction."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from gmf_platform.callbacks.logger import RunLogger
from gmf_platform.evaluation.drawing import Compared, comparison

__all__ = ["Pictures"]


@dataclass
class _Sheet:
    """Rows of a picture, and the classes that they show."""

    class_names: Sequence[str]
    rows: list[Compared] = field(default_factory=list)


class Pictures(Callback):
    """Writes the first validation images with truth and prediction after each validation of a fit.

    They go to TensorBoard and, the newest, to ``pictures/`` in the run's folder; of joint training,
    a sheet for each task.

    Args:
        count: images of a sheet; 0 for none.
    """

    def __init__(self, count: int = 4) -> None:
        super().__init__()
        self.count = count
        self.path: Path | None = None
        self._sheets: dict[str, _Sheet] = {}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self._sheets = {}

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
        for name, task, part, output in pl_module.pictured(batch, outputs):  # type: ignore[operator]
            sheet = self._sheets.setdefault(name, _Sheet(task.class_names))
            for i in range(min(len(part["ids"]), self.count - len(sheet.rows))):
                sheet.rows.append(task.compared(part, output, i))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, log and write the sheets."""
        folder = Path(trainer.default_root_dir) / "pictures"
        for name, sheet in self._sheets.items():
            if not sheet.rows:
                continue
            picture = comparison(sheet.rows, sheet.class_names)
            tag = "/".join(filter(None, ("val", name, "pictures")))
            for logger in trainer.loggers:
                if isinstance(logger, RunLogger):
                    step = trainer.global_step - 1  # where Lightning puts the scores
                    logger.experiment.add_image(tag, picture, step, dataformats="HWC")
            folder.mkdir(parents=True, exist_ok=True)
            self.path = folder / ("_".join(filter(None, ("validation", name))) + ".png")
            Image.fromarray(picture).save(self.path)
        self._sheets = {}
