"""What all writers share: where files go, one table of all images, and the legend."""

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from gmf_platform.deploy.results import Result, as_result
from gmf_platform.distributed.collect import to_first
from gmf_platform.evaluation.class_titles import titled
from gmf_platform.evaluation.drawing import palette

__all__ = ["PredictionWriter"]


class PredictionWriter(BasePredictionWriter):
    """Writes the predictions of image files to a folder.

    Of each image a picture, ``NAME_overlay.jpg``, and rows of ``predictions.json``;
    ``classes.json`` is the legend. A subclass says what the rows are, and may write more.

    Args:
        output: folder to write to.
        names: image file -> name in the folder, without suffix.
        class_names: in label order.

    Attributes:
        suffixes: of the files that an image gets, behind its name.
        what: it writes, in words.
        colours: of the classes, (256, 3).
    """

    suffixes: ClassVar[Sequence[str]] = ("_overlay.jpg",)
    what: ClassVar[str]

    def __init__(
        self, output: Path, names: Mapping[Path, Path], class_names: Sequence[str]
    ) -> None:
        super().__init__(write_interval="batch")
        self.output = output
        self.names = {str(path): name for path, name in names.items()}
        self.class_names = titled(class_names)
        self.colours = palette(len(class_names))
        self._found: dict[str, list[str]] = {}

    def files(self) -> Iterator[Path]:
        """The files of all images."""
        for name in self.names.values():
            for suffix in self.suffixes:
                yield self.output / name.with_name(f"{name.name}{suffix}")

    @abstractmethod
    def rows(self, source: Path, result: Any) -> list[dict[str, Any]]:
        """What ``predictions.json`` says of an image.

        Args:
            source: the image file.
            result: of the writer's task, see deploy/results.py.
        """

    def write(self, target: Path, result: Any) -> None:
        """Write an image's own files.

        Args:
            target: where they go, without suffix; the folder exists.
            result: of the writer's task.
        """
        picture = result.draw()
        picture.save(target.with_name(f"{target.name}_overlay.jpg"), quality=92)

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
        for name, predicted in zip(batch["ids"], prediction, strict=True):
            source = Path(name)
            result: Result = as_result(predicted, source, self.class_names)
            # As json already: a fifth of the memory of dicts.
            self._found[name] = [json.dumps(row) for row in self.rows(source, result)]
            target = self.output / self.names[name]
            target.parent.mkdir(parents=True, exist_ok=True)
            self.write(target, result)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the legend, as the sign that all is there."""
        if not trainer.is_global_zero:
            return
        legend = [
            {"label": label, "name": name, "colour": self.colours[label].tolist()}
            for label, name in enumerate(self.class_names)
        ]
        (self.output / "classes.json").write_text(json.dumps(legend, indent=1) + "\n")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Join what all processes found; a process without an image gets here too."""
        parts = to_first(self._found)
        if parts is not None:
            found = {source: rows for part in parts for source, rows in part.items()}
            self.finish([row for source in self.names for row in found.get(source, ())])

    def finish(self, rows: Sequence[str]) -> None:
        """Write what is of all images together.

        Args:
            rows: of all images in their order, each as json.
        """
        text = "[" + ",\n".join(rows) + "]\n"
        (self.output / "predictions.json").write_text(text, encoding="utf-8")
