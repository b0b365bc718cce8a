"""Boxes and masks in COCO's results format, and pictures of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gmf_platform.deploy.results import DetectionResult
from gmf_platform.deploy.writers.base import PredictionWriter

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
    """

    what = "predictions.json and pictures"

    def __init__(
        self,
        output: Path,
        names: Mapping[Path, Path],
        class_names: Sequence[str],
        *,
        category_ids: Sequence[int] | None = None,
    ) -> None:
        super().__init__(output, names, class_names)
        self.category_ids = list(category_ids or range(len(class_names)))
        self._image_ids = _image_ids(list(names))

    def rows(self, source: Path, result: DetectionResult) -> list[dict[str, Any]]:
        """One of each detection, also of those that are not drawn."""
        image = {"image_id": self._image_ids[source], "file_name": str(source)}
        found = result.found
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
            rows.append(row | masks[i] if masks else row)
        return rows


def _image_ids(sources: Sequence[Path]) -> dict[Path, int]:
    """Number of each image file."""
    numbers = [int(path.stem) for path in sources if path.stem.isdecimal()]
    if len(set(numbers)) < len(sources):
        numbers = list(range(1, len(sources) + 1))
    return dict(zip(sources, numbers, strict=True))
