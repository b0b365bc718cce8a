"""What several tasks say of the same images, each in a folder of its own."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from gmf_platform.deploy.results import classes_of
from gmf_platform.deploy.writers.base import PredictionWriter

__all__ = ["JointWriter"]


class JointWriter(BasePredictionWriter):
    """Writes the predictions of each task to a folder of the task's name.

    ``classes.json`` beside those folders is the legend of all tasks.

    Args:
        makers: of the tasks' writers, by the tasks' names.
        output: see PredictionWriter, as the next two.
        names: likewise.
        class_names: ``TASK/CLASS``.
    """

    what = "folders of the tasks"

    def __init__(
        self,
        makers: Mapping[str, Callable[..., PredictionWriter]],
        output: Path,
        names: Mapping[Path, Path],
        class_names: Sequence[str],
    ) -> None:
        super().__init__(write_interval="batch")
        self.output = output
        self.writers = {
            task: make(output / task, names, classes_of(task, class_names))
            for task, make in makers.items()
        }

    def files(self) -> Iterator[Path]:
        """The files of all images, of all tasks."""
        for writer in self.writers.values():
            yield from writer.files()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the folders."""
        for writer in self.writers.values():
            writer.on_predict_start(trainer, pl_module)

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Mapping[str, Any],
        *of_batch: Any,
    ) -> None:
        """Let each task write its part of a batch."""
        for task, writer in self.writers.items():
            writer.write_on_batch_end(trainer, pl_module, prediction[task], *of_batch)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the legends."""
        for writer in self.writers.values():
            writer.on_predict_end(trainer, pl_module)
        if trainer.is_global_zero:
            legends = {
                task: json.loads((writer.output / "classes.json").read_text())
                for task, writer in self.writers.items()
            }
            (self.output / "classes.json").write_text(json.dumps(legends, indent=1) + "\n")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Join what all processes found."""
        for writer in self.writers.values():
            writer.teardown(trainer, pl_module, stage)
