"""Scores of single images in validate and test, gathered from all processes."""

import csv
import math
from io import StringIO
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from gmf_platform.distributed.collect import to_first
from gmf_platform.evaluation.per_sample import Row

__all__ = ["PerSample"]


class PerSample(Callback):
    """Asks the task for the scores of each image that is evaluated."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: dict[int, Row] = {}

    def table(self) -> str | None:
        """All images' scores as csv, in the order of the split; every process has to call it.

        Returns:
            On process 0 the table, with ``index`` in the split and ``path``; None elsewhere, and
            where the task gives no scores of single images.
        """
        parts = to_first(self._rows)
        rows = {index: row for part in parts or () for index, row in part.items()}
        if not rows:
            return None
        columns = list(dict.fromkeys(name for row in rows.values() for name in row))
        text = StringIO()
        writer = csv.DictWriter(text, ["index", *columns], restval="", lineterminator="\n")
        writer.writeheader()
        for index in sorted(rows):
            writer.writerow({"index": index} | {k: _written(v) for k, v in rows[index].items()})
        return text.getvalue()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Note the scores of a batch."""
        self._note(trainer.val_dataloaders, pl_module, outputs, batch, batch_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Likewise."""
        self._note(trainer.test_dataloaders, pl_module, outputs, batch, batch_idx)

    def _note(self, loader: Any, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        batches = getattr(getattr(loader, "batches", None), "batches", None)
        if batches is None:  # a loader of someone else: which image is which is not known
            return
        for place, key in enumerate(batches[batch_idx]):
            scores = task.sample_scores(batch, outputs, place)
            if scores:
                path = getattr(loader.dataset, "path", None)
                name = str(batch["ids"][place]) if path is None else path(key.sample)
                self._rows[key.sample] = {"path": name} | scores


def _written(value: str | float) -> str | int:
    """NaN is an empty cell."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value
