"""Time of a COCO evaluation of boxes beside pycocotools, on drawn data of val2017's proportions.

    python benchmarks/coco_evaluation.py [--images 5000] [--detections 100] [--json]

All begin with the annotation file on disk and the detections as arrays in memory, and end with the
twelve numbers. pycocotools is used as everybody does: ``COCO(file)``, a list of result rows,
``loadRes``, ``evaluate``, ``accumulate``. They take turns, and the smallest time of each counts.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gmf_platform.evaluation import CocoBackend, CocoEvaluator, ImageDetections

HEIGHT, WIDTH = 480, 640
OBJECTS = 7.36  # an image of val2017, on average
CROWDS = 0.012
CORNERS = 30  # of an object's polygon: val2017's file is of the same size

Found = dict[int, ImageDetections]


def main() -> None:
    options = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        truth = Path(folder) / "truth.json"
        found = draw(truth, options.images, options.detections, options.categories)
        tasks: dict[str, Callable[[], Sequence[float]]] = {
            "ours, faster-coco-eval": partial(by_us, truth, found, "faster-coco-eval"),
            "ours, pycocotools": partial(by_us, truth, found, "pycocotools"),
            "pycocotools": partial(by_pycocotools, truth, found),
        }
        times, numbers = best_times(tasks, options.runs)
    report: dict[str, Any] = {
        "images": options.images,
        "detections": sum(len(x.scores) for x in found.values()),
        "seconds": times,
        "times_as_fast": {name: times["pycocotools"] / spent for name, spent in times.items()},
        "largest_difference": max(
            float(np.abs(np.subtract(x, numbers["pycocotools"])).max()) for x in numbers.values()
        ),
    }
    print(json.dumps(report, indent=1) if options.json else as_text(report))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100, help="of each image")
    parser.add_argument("--categories", type=int, default=80)
    parser.add_argument("--runs", type=int, default=2, help="timed runs of each")
    parser.add_argument("--json", action="store_true", help="print json")
    return parser.parse_args()


def as_text(report: dict[str, Any]) -> str:
    lines = [f"{report['images']} images, {report['detections']} detections"]
    for name, spent in report["seconds"].items():
        lines.append(f"{name:24} {spent:7.2f} s  {report['times_as_fast'][name]:6.2f} x as fast")
    return "\n".join([*lines, f"largest difference of a score {report['largest_difference']:.1e}"])


def by_us(truth: Path, found: Found, backend: CocoBackend) -> list[float]:
    categories = read_categories(truth)
    evaluator = CocoEvaluator(
        truth,
        image_ids=list(found),
        category_ids=categories,
        class_names=[str(number) for number in categories],
        masks=False,
        backend=backend,
    )
    for image_id, detections in found.items():
        evaluator.update(image_id, detections)
    return list(evaluator.compute().values.values())


def by_pycocotools(truth: Path, found: Found) -> list[float]:
    with redirect_stdout(StringIO()):
        categories = read_categories(truth)
        content = COCO(str(truth))
        results = content.loadRes(list(rows(found, categories)))
        evaluation = COCOeval(content, results, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return list(evaluation.stats)


def read_categories(truth: Path) -> list[int]:
    """Known to both beforehand; next to no time."""
    numbers: list[int] = json.loads(truth.with_suffix(".categories").read_text())
    return numbers


def rows(found: Found, categories: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Detections in COCO's results format."""
    for image_id, one in found.items():
        boxes = one.boxes.astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        for box, score, label in zip(
            boxes.tolist(), one.scores.tolist(), one.labels.tolist(), strict=True
        ):
            category = categories[label]
            yield {"image_id": image_id, "category_id": category, "bbox": box, "score": score}


def draw(path: Path, images: int, detections: int, categories: int) -> Found:
    """Write annotations; give detections, half of them near an object, with higher scores.

    Categories are as unequal as in COCO, three at most an image; a detector doubts among eight.
    """
    random = np.random.default_rng(0)
    share = 1 / np.arange(1, categories + 1)
    share /= share.sum()
    counts = random.poisson(OBJECTS, images)
    annotations: list[dict[str, Any]] = []
    found: Found = {}
    for image_id, count in enumerate(counts.tolist(), 1):
        kinds = random.choice(categories, size=8, p=share)
        boxes, labels = draw_boxes(random, count), random.choice(kinds[:3], count)
        annotations += annotate(random, image_id, boxes, labels, len(annotations))
        found[image_id] = detect(random, boxes, labels, kinds, detections)
    content = {
        "images": [{"id": i, "height": HEIGHT, "width": WIDTH} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": i, "name": str(i)} for i in range(1, categories + 1)],
    }
    path.write_text(json.dumps(content))
    path.with_suffix(".categories").write_text(json.dumps(list(range(1, categories + 1))))
    return found


def draw_boxes(random: np.random.Generator, count: int) -> np.ndarray:
    """(N, 4) left, top, right, bottom; sides of 55 pixels, and a factor of 3 more or less."""
    limit = np.array([WIDTH, HEIGHT])
    sides = np.minimum(np.exp(random.normal(4, 1.1, (count, 2))), limit - 1)
    corners = random.uniform(0, 1, (count, 2)) * (limit - sides)
    return np.concatenate([corners, corners + sides], axis=1)


def annotate(
    random: np.random.Generator, image_id: int, boxes: np.ndarray, labels: np.ndarray, number: int
) -> Iterator[dict[str, Any]]:
    angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for i, (box, label) in enumerate(zip(boxes.round(2), labels.tolist(), strict=True), 1):
        sides = box[2:] - box[:2]
        polygon = ((box[:2] + box[2:]) / 2 + circle * sides / 2).round(2).ravel()
        yield {
            "id": number + i,
            "image_id": image_id,
            "category_id": label + 1,
            "bbox": [*box[:2].tolist(), *sides.round(2).tolist()],
            "area": float(sides.prod() * 0.6),
            "iscrowd": int(random.random() < CROWDS),
            "segmentation": [polygon.tolist()],
        }


def detect(
    random: np.random.Generator,
    boxes: np.ndarray,
    labels: np.ndarray,
    kinds: np.ndarray,
    count: int,
) -> ImageDetections:
    near = random.integers(0, len(boxes), count // 2 if len(boxes) else 0)
    sides = np.tile(boxes[near, 2:] - boxes[near, :2], 2)
    moved = boxes[near] + random.normal(0, 0.12, sides.shape) * sides
    others = draw_boxes(random, count - len(near))
    right = np.where(random.random(len(near)) < 0.8, labels[near], random.choice(kinds, len(near)))
    scores = [random.beta(1.2, 2, len(near)), random.beta(0.5, 6, len(others))]
    order = np.argsort(-np.concatenate(scores), kind="stable")
    guessed = np.concatenate([right, random.choice(kinds, len(others))])
    return ImageDetections(
        (HEIGHT, WIDTH),
        np.concatenate([moved, others])[order].astype(np.float32),
        np.concatenate(scores)[order].astype(np.float32),
        guessed[order].astype(np.int16),
    )


def best_times(
    tasks: dict[str, Callable[[], Sequence[float]]], runs: int
) -> tuple[dict[str, float], dict[str, Sequence[float]]]:
    """Seconds of the fastest run of each, and what it gives."""
    times, results = dict.fromkeys(tasks, float("inf")), {}
    for _ in range(runs):
        for name, task in tasks.items():
            begun = time.perf_counter()
            results[name] = task()
            times[name] = min(times[name], time.perf_counter() - begun)
    return times, results


if __name__ == "__main__":
    main()
