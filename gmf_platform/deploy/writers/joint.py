"""What several tasks say of the same images, each in a folder of its own."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from gmf_platform.deploy.writers.base import PredictionWriter

__all__ = ["JointWriter"]


class JointWriter(PredictionWriter):
    """Writes the predictions of each task to a folder of the task's name.

    ``classes.json`` beside those folders is the legend of all tasks.

    Args:
        makers: of the tasks' writers, by the tasks' names.
        output: see PredictionWriter, as the next two.
        names: likewise.
        class_names: ``TASK/CLASS``.
    """

    suffixes = ()
    what = "a folder of each task"

    def __init__(
        self,
        makers: Mapping[str, Callable[..., PredictionWriter]],
        output: Path,
        names: Mapping[Path, Path],
        class_names: Sequence[str],
    ) -> None:
        super().__init__(output, names, class_names)
        classes = {
            task: [n.removeprefix(f"{task}/") for n in class_names if n.startswith(f"{task}/")]
            for task in makers
        }
        self.writers = {
            task: make(output / task, names, classes[task]) for task, make in makers.items()
        }

    def parts(self) -> Sequence[PredictionWriter]:
        """The tasks' writers."""
        return list(self.writers.values())

    def write(self, source: Path, target: Path, prediction: Mapping[str, Any]) -> None:
        """Write what each task says of an image."""
        name = target.relative_to(self.output)
        for task, writer in self.writers.items():
            own = writer.output / name
            own.parent.mkdir(parents=True, exist_ok=True)
            writer.write(source, own, prediction[task])

    def images(self, prediction: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
        """What is predicted of each image of a batch, by task."""
        tasks = prediction.values()
        return [dict(zip(prediction, one, strict=True)) for one in zip(*tasks, strict=True)]

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the folders."""
        super().on_predict_start(trainer, pl_module)
        for writer in self.parts():
            writer.on_predict_start(trainer, pl_module)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the legends."""
        for writer in self.parts():
            writer.on_predict_end(trainer, pl_module)
        if trainer.is_global_zero:
            legends = {
                task: json.loads((writer.output / "classes.json").read_text())
                for task, writer in self.writers.items()
            }
            (self.output / "classes.json").write_text(json.dumps(legends, indent=1) + "\n")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Join what all processes found."""
        for writer in self.parts():
            writer.teardown(trainer, pl_module, stage)
