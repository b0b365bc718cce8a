"""Boxes and masks in COCO's results format, and pictures of them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from PIL import Image

from datamodules.images import read_image
from gmf_platform.deploy.writers.base import PredictionWriter
from gmf_platform.distributed.collect import to_first
from gmf_platform.evaluation import ImageDetections
from gmf_platform.evaluation.object_drawing import draw_objects, found_objects

__all__ = ["DetectionWriter"]


class DetectionWriter(PredictionWriter):
    """Writes ``predictions.json``, and of each image a picture with what was found.

    ``predictions.json`` is COCO's results format, one row a detection: ``image_id``,
    ``category_id``, ``bbox`` (left, top, width, height), ``score`` and, with masks,
    ``segmentation``; and beside those ``file_name`` and ``category`` in words. An image's id is
    the number that its file's name is, as in COCO's own sets; if one name is no number or two are
    the same, images are numbered from 1 in their order. ``NAME_overlay.jpg`` is the picture.

    Coordinates are of the image as people see it, turned as EXIF says. COCO's annotations, and so
    ``validate`` and ``test``, are of the pixels as they lie in the file, except where only turned
    ones have the size annotated: of a file with an EXIF orientation, rows of the two differ.

    Args:
        output: see PredictionWriter, as the next two.
        names: likewise.
        class_names: likewise.
        category_ids: the data set's number of each label; None: the labels themselves, 0..K-1.
        min_score: detections that score less are not drawn; the json holds them all.
    """

    suffixes = ("_overlay.jpg",)
    what = "predictions.json and pictures"

    def __init__(
        self,
        output: Path,
        names: Mapping[Path, Path],
        class_names: Sequence[str],
        *,
        category_ids: Sequence[int] | None = None,
        min_score: float = 0.3,
    ) -> None:
        super().__init__(output, names, class_names)
        self.category_ids = list(category_ids or range(len(class_names)))
        self.min_score = min_score
        self._image_ids = _image_ids(list(names))
        self._found: dict[str, list[str]] = {}

    def write(self, source: Path, target: Path, prediction: ImageDetections) -> None:
        """Note what was found on an image, and draw it."""
        self._found[str(source)] = self._rows(source, prediction)
        objects = found_objects(prediction, min_score=self.min_score, class_names=self.class_names)
        drawn = draw_objects(read_image(source), objects, self.colours)
        Image.fromarray(drawn).save(target.with_name(f"{target.name}_overlay.jpg"), quality=92)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Join what all processes found; a process without an image gets here too."""
        parts = to_first(self._found)
        if parts is None:
            return
        found = {source: rows for part in parts for source, rows in part.items()}
        rows = [row for source in self.names for row in found.get(source, ())]
        text = "[" + ",\n".join(rows) + "]\n"
        (self.output / "predictions.json").write_text(text, encoding="utf-8")

    def _rows(self, source: Path, found: ImageDetections) -> list[str]:
        """Rows of the results, as json already: a fifth of the memory of their dicts."""
        image = {"image_id": self._image_ids[source], "file_name": str(source)}
        masks = [
            {"segmentation": rle | {"counts": rle["counts"].decode()}}
            for rle in found.segmentations()
        ]
        columns = found.boxes.tolist(), found.scores.tolist(), found.labels.tolist()
        rows = []
        for i, ((left, top, right, bottom), score, label) in enumerate(zip(*columns, strict=True)):
            row = image | {
                "category_id": self.category_ids[label],
                "category": self.class_names[label],
                "bbox": [round(v, 3) for v in (left, top, right - left, bottom - top)],
                "score": round(score, 6),
            }
            rows.append(json.dumps(row | masks[i] if masks else row))
        return rows


def _image_ids(sources: Sequence[Path]) -> dict[Path, int]:
    """Number of each image file."""
    numbers = [int(path.stem) for path in sources if path.stem.isdecimal()]
    if len(set(numbers)) < len(sources):
        numbers = list(range(1, len(sources) + 1))
    return dict(zip(sources, numbers, strict=True))
