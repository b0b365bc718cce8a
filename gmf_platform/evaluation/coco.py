"""COCO's evaluation of boxes and masks, the same on any number of processes."""

import gc
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as run_lengths

from gmf_platform.distributed.collect import from_first, to_first
from gmf_platform.errors import UserError
from gmf_platform.evaluation.coco_scores import (
    CocoScores,
    Kind,
    PrecisionRecall,
    class_values,
    summary,
)
from gmf_platform.evaluation.detection import ImageDetections
from gmf_platform.evaluation.segmentation import Size

__all__ = ["CocoBackend", "CocoEvaluator", "accumulate", "measured_masks"]

CocoBackend = Literal["faster-coco-eval", "pycocotools"]


class CocoEvaluator:
    """Collects what each process finds and evaluates it once, on process 0.

    Each image is to be given once, also one on which nothing was found: the images given are those
    evaluated. An image that several processes give counts once. What is held is small: boxes,
    scores, labels and the masks' packed run lengths.

    The file's annotations count as they stand, crowds and areas included, with three exceptions
    where pycocotools fails or is wrong: annotations are numbered anew (it takes the number 0 for
    "no match", and one of two equal numbers for both), ``iscrowd`` may be left out, and ``area``
    too, which is then the box's. As in detectron2, the area of a predicted mask is its own, not
    its box's.

    Args:
        annotation_file: COCO instances json; read at each `compute`, on process 0.
        image_ids: of the split; others are refused.
        category_ids: the file's category of each label.
        class_names: in label order.
        masks: evaluate masks beside boxes.
        backend: who does it. Both give the same numbers to 1e-15; faster-coco-eval takes a fifth
            to a ninth of the time for boxes (benchmarks/coco_evaluation.py).

    Raises:
        UserError: ``category_ids`` and ``class_names`` do not fit each other.
    """

    def __init__(
        self,
        annotation_file: Path,
        *,
        image_ids: Sequence[int],
        category_ids: Sequence[int],
        class_names: Sequence[str],
        masks: bool,
        backend: CocoBackend = "faster-coco-eval",
    ) -> None:
        if len(category_ids) != len(class_names) or len(set(category_ids)) != len(category_ids):
            raise UserError(
                f"{annotation_file}: {len(class_names)} class names for {len(category_ids)} "
                f"category ids ({len(set(category_ids))} of them distinct); give one id a class"
            )
        self.annotation_file, self.masks = Path(annotation_file), masks
        self.image_ids, self.category_ids = frozenset(image_ids), list(category_ids)
        self.class_names, self.backend = list(class_names), backend
        self._found: dict[int, _Packed] = {}

    def __len__(self) -> int:
        """Images given to this process."""
        return len(self._found)

    def update(self, image_id: int, detections: ImageDetections) -> None:
        """Count an image.

        Args:
            image_id: of the annotation file.
            detections: on the original image, with ``rles`` if masks are evaluated.

        Raises:
            ValueError: the image is not of the split, masks are missing, or a box or score is
                not a number.
        """
        if image_id not in self.image_ids:
            raise ValueError(f"image {image_id} is not in the split of {self.annotation_file}")
        if self.masks and detections.rles is None:
            raise ValueError(f"image {image_id}: masks are to be evaluated, but none were given")
        if not (np.isfinite(detections.boxes).all() and np.isfinite(detections.scores).all()):
            raise ValueError(f"image {image_id}: a box or score is not a finite number")
        self._found.setdefault(image_id, _pack(detections, masks=self.masks))

    def reset(self) -> None:
        """Forget all images."""
        self._found = {}

    def compute(self) -> CocoScores:
        """Scores of the images that all processes gave.

        Every process has to call it; each gets the numbers, process 0 the curves as well. The
        communication does not depend on what a process holds: one gather and one broadcast of
        CPU tensors, over gloo whatever the devices' backend is.

        Raises:
            UserError: on every process, if the annotation file cannot be evaluated.
        """
        parts = to_first(self._found)
        whole = None if parts is None else self._outcome(parts)
        numbers = replace(whole, curves={}) if isinstance(whole, CocoScores) else whole
        sent = from_first(numbers)
        match whole or sent:
            case CocoScores() as scores:
                return scores
            case error:
                raise error or RuntimeError("COCO evaluation: process 0 sent no scores")

    def _outcome(self, parts: Sequence[Mapping[int, "_Packed"]]) -> CocoScores | Exception:
        """Scores, or what went wrong: the other processes wait for either."""
        found: dict[int, _Packed] = {}
        for part in reversed(parts):
            found.update(part)
        try:
            return self._evaluate(found)
        except UserError as error:
            return error
        except Exception as error:  # noqa: BLE001 - every process raises it
            message = f"COCO evaluation on process 0: {type(error).__name__}: {error}"
            return RuntimeError(message).with_traceback(error.__traceback__)

    def _evaluate(self, found: Mapping[int, "_Packed"]) -> CocoScores:
        with _without_garbage_collection():
            truth = self._read_truth(found)
            predicted = self._annotations(found)
            counts = Counter(a["category_id"] for a in truth["annotations"] if not a["iscrowd"])
            objects = [counts[number] for number in self.category_ids]
            scores = CocoScores({}, {}, images=len(found), objects=objects)
            self._add(scores, "box", truth, predicted)
            if self.masks:
                self._check_sizes(truth, found)
                rles = [rle for image_id in sorted(found) for rle in found[image_id].rles()]
                measured_masks(predicted, rles)
                self._add(scores, "mask", truth, predicted)
        return scores

    def _add(self, scores: CocoScores, kind: Kind, truth: "_Json", predicted: "_Rows") -> None:
        """Evaluate boxes or masks."""
        tables = accumulate(kind, truth, predicted, sorted(self.category_ids), self.backend)
        scores.values |= summary(kind, tables)
        by_label = tables.categories(np.argsort(np.argsort(self.category_ids)).tolist())
        scores.class_values |= class_values(kind, by_label)
        scores.curves[kind] = by_label

    def _read_truth(self, found: Mapping[int, "_Packed"]) -> "_Json":
        """The part of the annotation file that is about the images found and our classes."""
        wanted = set(self.category_ids)
        try:
            content = json.loads(self.annotation_file.read_bytes())
            images = [image for image in content["images"] if image["id"] in found]
            annotations = [
                self._completed(annotation)
                for annotation in content["annotations"]
                if annotation["image_id"] in found and annotation["category_id"] in wanted
            ]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.annotation_file} cannot be read as COCO annotations "
                f"({type(error).__name__}: {error}); check-data says more"
            ) from error
        for number, annotation in enumerate(annotations, 1):
            annotation["id"] = number
        categories = [
            {"id": number, "name": name}
            for number, name in zip(self.category_ids, self.class_names, strict=True)
        ]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _completed(self, annotation: dict[str, Any]) -> dict[str, Any]:
        """An annotation with what may be left out."""
        if self.masks and not annotation.get("segmentation"):
            raise UserError(
                f"{self.annotation_file}: image {annotation['image_id']}, annotation "
                f"{annotation.get('id')} has no mask ('segmentation'); train a detector of boxes "
                "only, or mend the json"
            )
        annotation.setdefault("iscrowd", 0)
        if annotation.get("area") is None:
            annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
        return annotation

    def _annotations(self, found: Mapping[int, "_Packed"]) -> "_Rows":
        """Detections as COCO has them, in the order of image ids, whoever found them."""
        rows: _Rows = []
        for image_id in sorted(found):
            packed = found[image_id]
            boxes = packed.boxes.astype(np.float64)
            boxes[:, 2:] -= boxes[:, :2]
            columns = boxes.tolist(), packed.scores.tolist(), packed.labels.tolist()
            for box, score, label in zip(*columns, strict=True):
                category = self.category_ids[label]
                row = {"id": len(rows) + 1, "image_id": image_id, "category_id": category}
                rows.append(row | {"bbox": box, "score": score, "area": box[2] * box[3]})
        return rows

    def _check_sizes(self, truth: "_Json", found: Mapping[int, "_Packed"]) -> None:
        for image in truth["images"]:
            size = found[image["id"]].size
            if (image.get("height"), image.get("width")) != size:
                raise UserError(
                    f"{self.annotation_file}: image {image['id']} is said to be "
                    f"{image.get('width')} x {image.get('height')} pixels, but the file is "
                    f"{size[1]} x {size[0]}; its masks cannot be compared: mend the json"
                )


class _Packed(NamedTuple):
    """Detections of an image as they are held and sent."""

    size: Size
    boxes: NDArray[np.floating[Any]]
    scores: NDArray[np.float32]
    labels: NDArray[np.int16]
    masks: bytes

    def rles(self) -> list[dict[str, Any]]:
        """Masks as pycocotools takes them."""
        codes = zlib.decompress(self.masks).split() if self.masks else ()
        return [{"size": list(self.size), "counts": code} for code in codes]


_Json = dict[str, list[dict[str, Any]]]
_Rows = list[dict[str, Any]]


def _pack(detections: ImageDetections, *, masks: bool) -> _Packed:
    # The code of run lengths has letters from "0" to "o", so that a blank can stand between two.
    codes = zlib.compress(b" ".join(detections.rles), 1) if masks and detections.rles else b""
    # Copies, since a part of a larger array would keep all of that in memory.
    boxes, scores = np.array(detections.boxes), np.array(detections.scores, np.float32)
    return _Packed(detections.size, boxes, scores, np.array(detections.labels, np.int16), codes)


def measured_masks(rows: _Rows, rles: Sequence[dict[str, Any]]) -> _Rows:
    """Give each annotation its mask, and the mask's area in place of the box's; gives them back."""
    for row, rle in zip(rows, rles, strict=True):
        # One at a time: pycocotools 2.0.11 fails on a list of more than 255 (OverflowError).
        row["segmentation"], row["area"] = rle, float(run_lengths.area(rle))
    return rows


def accumulate(
    kind: Kind, truth: _Json, predicted: _Rows, categories: Sequence[int], backend: CocoBackend
) -> PrecisionRecall:
    """Have a backend match predictions with the truth.

    Args:
        kind: what is matched.
        truth: ``images``, ``annotations`` and ``categories`` as in COCO's json.
        predicted: annotations with a score.
        categories: their ids, rising.
        backend: who does it.
    """
    match backend:
        case "faster-coco-eval":
            from faster_coco_eval.core.coco import COCO
            from faster_coco_eval.core.faster_eval_api import COCOeval_faster as COCOeval
        case "pycocotools":
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval
    with redirect_stdout(io.StringIO()):  # pycocotools prints
        true, guessed = COCO(), COCO()
        true.dataset, guessed.dataset = truth, truth | {"annotations": predicted}
        true.createIndex()
        guessed.createIndex()
        evaluation = COCOeval(true, guessed, {"box": "bbox", "mask": "segm"}[kind])
        evaluation.params.imgIds = [image["id"] for image in truth["images"]]
        evaluation.params.catIds = list(categories)
        evaluation.evaluate()
        evaluation.accumulate()
    tables = (np.asarray(evaluation.eval[x]) for x in ("precision", "recall", "scores"))
    return PrecisionRecall(*tables)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Half a million dicts are made, which the collector would look through again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
