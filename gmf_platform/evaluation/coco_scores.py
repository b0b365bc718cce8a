"""The numbers of the COCO evaluation, from its precision and recall tables."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gmf_platform.evaluation.class_report import ClassReport, most_frequent
from gmf_platform.evaluation.precision_recall import Curve, curve_of_recalls

__all__ = ["CocoScores", "Kind", "PrecisionRecall", "class_values", "summary"]

Kind = Literal["box", "mask"]
Table = NDArray[np.float64]

# Places in the tables, by pycocotools' Params: IoU .5 to .95 by .05, areas, detections an image.
_IOU_50, _IOU_75 = 0, 5
_AREAS = {"small": 1, "medium": 2, "large": 3}
_LIMITS = {"1": 0, "10": 1, "100": 2}


class PrecisionRecall(NamedTuple):
    """Tables of pycocotools' ``accumulate``, -1 where there is no object to find.

    T = 10 IoU thresholds .5 to .95; R = 101 recalls 0 to 1; K categories; A = 4 areas: all, small
    (up to 32 x 32), medium (up to 96 x 96), large; M = at most 1, 10, 100 detections an image.

    Attributes:
        precision: (T, R, K, A, M), the best precision at that recall or a higher one.
        recall: (T, K, A, M), the highest reached.
        scores: (T, R, K, A, M), score of the detection with which the recall is reached.
    """

    precision: Table
    recall: Table
    scores: Table

    def categories(self, order: Sequence[int]) -> "PrecisionRecall":
        """The tables with their categories in another order."""
        where = list(order)
        precision, scores = self.precision[:, :, where], self.scores[:, :, where]
        return PrecisionRecall(precision, self.recall[:, where], scores)


@dataclass
class CocoScores:
    """Scores of a split, as fractions 0..1; NaN where there is no object to find.

    Attributes:
        values: ``box_ap``, ``box_ap50``, ``box_ap75``, ``box_ap_small``, ``_medium``, ``_large``,
            ``box_ar1``, ``box_ar10``, ``box_ar100``, ``box_ar_small``, ``_medium``, ``_large``,
            COCO's twelve in its order; with masks the same again as ``mask_...``.
        class_values: ``box_ap`` and ``box_ap50`` (with masks ``mask_ap``, ``mask_ap50``) of each
            class in label order.
        images: number of images evaluated.
        curves: ``box`` (and ``mask``) tables to draw curves from, categories in label order; on
            process 0 alone, empty on the others.
        objects: of each class in label order that are to be found; crowds are not.
    """

    values: dict[str, float]
    class_values: dict[str, list[float]]
    images: int
    curves: dict[Kind, PrecisionRecall] = field(default_factory=dict)
    objects: list[int] = field(default_factory=list)

    def report(self) -> ClassReport:
        """AP of each class, and on process 0 the curves at IoU .5."""
        scores = {name: x for name, x in self.class_values.items() if name.endswith("_ap")}
        labels = most_frequent(self.objects)
        curves = {
            f"{kind}_iou50": {label: self._curve(tables, label) for label in labels}
            for kind, tables in self.curves.items()
        }
        return ClassReport(self.objects, dict(scores), curves=curves)

    def _curve(self, tables: PrecisionRecall, label: int) -> Curve:
        precision, scores = (x[_IOU_50, :, label, 0, -1] for x in (tables.precision, tables.scores))
        return curve_of_recalls(precision, scores, objects=self.objects[label])

    def table(self, class_names: Sequence[str]) -> str:
        """One line a class: name and scores in per cent; ``-`` where it does not occur."""
        width = max(len(name) for name in (*class_names, "class"))
        titles = {key: _title(key) for key in self.class_values}
        rows = [f"{'class':<{width}}" + "".join(f"  {title:>9}" for title in titles.values())]
        for label, name in enumerate(class_names):
            row = (self.class_values[key][label] for key in titles)
            rows.append(f"{name:<{width}}" + "".join(_percent(value) for value in row))
        mean = "".join(_percent(self.values[key]) for key in titles)
        return "\n".join([*rows, f"{'mean':<{width}}{mean}"])


def summary(kind: Kind, tables: PrecisionRecall) -> dict[str, float]:
    """COCO's twelve numbers, by pycocotools' ``summarize``: means over all that is defined."""
    return {f"{kind}_{name}": _mean(part) for name, part in _parts(tables)}


def class_values(kind: Kind, tables: PrecisionRecall) -> dict[str, list[float]]:
    """AP and AP at IoU .5 of each category, in the tables' order."""
    by_category = np.moveaxis(tables.precision[..., 0, -1], 2, 0)
    return {
        f"{kind}_ap": [_mean(part) for part in by_category],
        f"{kind}_ap50": [_mean(part[_IOU_50]) for part in by_category],
    }


def _parts(tables: PrecisionRecall) -> Iterator[tuple[str, Table]]:
    """Name of each of the twelve numbers, and what it is the mean of."""
    precision, recall = tables.precision[..., -1], tables.recall
    yield "ap", precision[..., 0]
    yield "ap50", precision[_IOU_50, ..., 0]
    yield "ap75", precision[_IOU_75, ..., 0]
    yield from _by_area("ap", precision)
    for name, limit in _LIMITS.items():
        yield f"ar{name}", recall[..., 0, limit]
    yield from _by_area("ar", recall[..., -1])


def _by_area(name: str, table: Table) -> Iterator[tuple[str, Table]]:
    for area, place in _AREAS.items():
        yield f"{name}_{area}", table[..., place]


def _mean(part: Table) -> float:
    defined = part[part > -1]
    return float(defined.mean()) if defined.size else math.nan


def _title(key: str) -> str:
    kind, _, name = key.partition("_")
    return f"{kind} {name.upper()}"


def _percent(fraction: float) -> str:
    return f"{'-':>11}" if math.isnan(fraction) else f"{100 * fraction:11.2f}"
