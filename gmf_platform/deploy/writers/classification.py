"""The most probable classes of images, in a table and under pictures."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from PIL import Image

from datamodules.images import read_image
from gmf_platform.deploy.writers.base import PredictionWriter
from gmf_platform.distributed.collect import to_first
from gmf_platform.evaluation import Guesses
from gmf_platform.evaluation.class_pictures import Guess, captioned

__all__ = ["ClassificationWriter"]


class ClassificationWriter(PredictionWriter):
    """Writes ``predictions.csv``, and of each image a picture with its classes under it.

    A line of ``predictions.csv`` is an image file and its five most probable classes, each with
    its probability: ``file, class_1, probability_1, class_2, ...``; ``NAME_overlay.jpg`` is the
    picture.

    Args:
        output: see PredictionWriter, as the next two.
        names: likewise.
        class_names: likewise.
    """

    suffixes = ("_overlay.jpg",)
    what = "predictions.csv and pictures"

    def __init__(
        self, output: Path, names: Mapping[Path, Path], class_names: Sequence[str]
    ) -> None:
        super().__init__(output, names, class_names)
        self._found: dict[str, list[Guess]] = {}

    def write(self, source: Path, target: Path, prediction: Guesses) -> None:
        """Note an image's classes, and draw them."""
        guesses = prediction.named(self.class_names)
        self._found[str(source)] = guesses
        drawn = captioned(read_image(source), guesses)
        Image.fromarray(drawn).save(target.with_name(f"{target.name}_overlay.jpg"), quality=92)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Join what all processes found: a process without an image gets here too."""
        parts = to_first(self._found)
        if parts is not None:
            self._write_table({name: row for part in parts for name, row in part.items()})

    def _write_table(self, found: Mapping[str, Sequence[Guess]]) -> None:
        count = min(5, len(self.class_names))
        ranks = range(1, count + 1)
        titles = [title for i in ranks for title in (f"class_{i}", f"probability_{i}")]
        with (self.output / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["file", *titles])
            for source in self.names:
                cells = [x for name, share in found[source] for x in (name, f"{share:.6f}")]
                table.writerow([source, *cells])
