"""Pictures of a fixed set of validation images: image, truth, prediction."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from gmf_platform.callbacks.logger import RunLogger
from gmf_platform.callbacks.samples import SampleNumbers
from gmf_platform.distributed.collect import to_first
from gmf_platform.evaluation.drawing import Compared, comparison
from gmf_platform.ranges import NonNegativeInt

__all__ = ["Pictures"]


@dataclass
class _Sheet:
    """Rows of a picture by their samples' numbers, and the classes that they show."""

    class_names: Sequence[str]
    rows: dict[int, Compared] = field(default_factory=dict)


class Pictures(Callback):
    """Writes validation images with truth and prediction after each validation of a fit.

    They are the same ones each time, evenly spaced over the split, so that one can look at how
    they change; of a loader that is not ours, the first ones. They go to TensorBoard and, the
    newest, to ``pictures/`` in the run's folder; of joint training, a sheet for each task.

    Args:
        count: images of a sheet; 0 for none.
    """

    def __init__(self, count: NonNegativeInt = 4) -> None:
        super().__init__()
        self.count = count
        self.path: Path | None = None
        self._begin()

    def _begin(self) -> None:
        self._sheets: dict[str, _Sheet] = {}
        self._numbers = SampleNumbers()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self._begin()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take those images of a batch that are to be shown."""
        if not self._is_wanted(trainer):
            return
        for name, task, part, output in pl_module.pictured(batch, outputs):  # type: ignore[operator]
            rows = self._sheets.setdefault(name, _Sheet(task.class_names)).rows
            found = self._numbers.next(trainer.val_dataloaders, name)
            if found is not None:
                loader, numbers = found
                wanted = _spaced(self.count, _evaluated(trainer, loader.dataset))
            else:
                numbers = range(len(rows), len(rows) + len(part["ids"]))  # until there are enough
                wanted = range(self.count) if trainer.is_global_zero else ()
            for place, number in enumerate(numbers):
                if number in wanted:
                    rows[number] = task.compared(part, output, place)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, log and write the sheets, with the images of all processes."""
        if not self._is_wanted(trainer):
            return
        sheets: dict[str, _Sheet] = {}
        for part in to_first(self._sheets) or []:
            for name, sheet in part.items():
                sheets.setdefault(name, _Sheet(sheet.class_names)).rows.update(sheet.rows)
        self._begin()
        for name, sheet in sheets.items():
            if sheet.rows:
                rows = [sheet.rows[number] for number in sorted(sheet.rows)]
                self._write(trainer, name, comparison(rows, sheet.class_names))

    def _write(self, trainer: Trainer, name: str, picture: Any) -> None:
        tag = "/".join(filter(None, ("val", name, "pictures")))
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                step = trainer.global_step - 1  # where Lightning puts the scores
                logger.add_picture(tag, picture, step=step, photos=True)
        folder = Path(trainer.default_root_dir) / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / ("_".join(filter(None, ("validation", name))) + ".png")
        Image.fromarray(picture).save(self.path)

    def _is_wanted(self, trainer: Trainer) -> bool:
        """The same on all processes."""
        return self.count > 0 and not trainer.sanity_checking and trainer.state.fn == "fit"


def _spaced(count: int, size: int) -> Collection[int]:
    """Numbers evenly spaced over a split, its first and last sample among them."""
    return {int(number) for number in np.linspace(0, size - 1, min(count, size)).round()}


def _evaluated(trainer: Trainer, dataset: Any) -> int:
    """Samples of a split that a validation takes: of ``limit_val_batches`` the first ones."""
    batches: int = len(trainer.val_dataloaders)  # type: ignore[arg-type]
    return max(1, int(sum(trainer.num_val_batches) / batches * len(dataset)))
