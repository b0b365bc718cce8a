"""Scores of single images in validate and test, gathered from all processes."""

import csv
import math
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from gmf_platform.callbacks.samples import SampleNumbers
from gmf_platform.distributed.collect import to_first
from gmf_platform.evaluation.per_sample import Row

__all__ = ["PerSample"]


class PerSample(Callback):
    """Asks the task for the scores of each image that is evaluated."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: dict[str, dict[int, Row]] = {}
        self._numbers = SampleNumbers()

    def tables(self) -> dict[str, str]:
        """All images' scores as csv, in the order of the split; every process has to call it.

        Begins anew with the next evaluation.

        Returns:
            On process 0 ``per_sample.csv``, in joint training one for each task, with ``index`` in
            the split and ``path``; none elsewhere, and none of a task that scores no single images.
        """
        parts = to_first(self._rows) or []
        self._rows, self._numbers = {}, SampleNumbers()
        names = dict.fromkeys(name for part in parts for name in part)
        return {
            f"{name}_per_sample.csv".lstrip("_"): _csv([part.get(name, {}) for part in parts])
            for name in names
        }

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
        self._note(trainer.val_dataloaders, pl_module, outputs, batch)

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
        self._note(trainer.test_dataloaders, pl_module, outputs, batch)

    def _note(self, loader: Any, task: Any, outputs: Any, batch: Any) -> None:
        for name, part, own_batch, own_outputs in task.pictured(batch, outputs):
            found = self._numbers.next(loader, name)
            if found is None:
                continue
            own, samples = found
            for place, sample in enumerate(samples):
                scores = part.sample_scores(own_batch, own_outputs, place)
                if scores:
                    path = getattr(own.dataset, "path", None)
                    file = str(own_batch["ids"][place]) if path is None else path(sample)
                    self._rows.setdefault(name, {})[sample] = {"path": file} | scores


def _csv(parts: Sequence[Mapping[int, Row]]) -> str:
    rows = {index: row for part in parts for index, row in part.items()}
    columns = list(dict.fromkeys(name for index in sorted(rows) for name in rows[index]))
    text = StringIO()
    writer = csv.DictWriter(text, ["index", *columns], restval="", lineterminator="\n")
    writer.writeheader()
    for index in sorted(rows):
        writer.writerow({"index": index} | {k: _written(v) for k, v in rows[index].items()})
    return text.getvalue()


def _written(value: str | float) -> str | int:
    """NaN is an empty cell."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value
