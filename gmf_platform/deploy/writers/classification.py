"""The most probable classes of images, in tables and under pictures."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gmf_platform.deploy.results import ClassificationResult
from gmf_platform.deploy.writers.base import PredictionWriter

__all__ = ["ClassificationWriter"]


class ClassificationWriter(PredictionWriter):
    """Writes each image's five most probable classes, and a picture with them under it.

    A row of ``predictions.json`` is ``file_name`` and ``classes``, a list of ``label``, ``name``
    and ``probability``; a line of ``predictions.csv`` is the same for spreadsheets: ``file,
    class_1, probability_1, class_2, ...``. ``NAME_overlay.jpg`` is the picture.

    Args:
        settings: see PredictionWriter.
    """

    what = "predictions.json, predictions.csv and pictures"

    def rows(self, source: Path, result: ClassificationResult) -> list[dict[str, Any]]:
        """One of an image."""
        columns = zip(result.labels, result.names, result.probabilities, strict=True)
        classes = [
            {"label": label, "name": name, "probability": round(probability, 6)}
            for label, name, probability in columns
        ]
        return [{"file_name": str(source), "classes": classes}]

    def finish(self, rows: Sequence[str]) -> None:
        """Write both tables."""
        super().finish(rows)
        ranks = range(1, min(5, len(self.class_names)) + 1)
        titles = [title for i in ranks for title in (f"class_{i}", f"probability_{i}")]
        with (self.output / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["file", *titles])
            for row in map(json.loads, rows):
                guesses = [(g["name"], f"{g['probability']:.6f}") for g in row["classes"]]
                table.writerow([row["file_name"], *(cell for guess in guesses for cell in guess)])
