"""Mask AP that a mask head of 28 x 28 cells cannot exceed: the truth itself, sent through it.

    python benchmarks/mask_limit.py ANNOTATIONS.json [--images ID ...] [--cells 28] [--binary]

Each object's mask is averaged over 28 x 28 cells of its box, pasted back as a prediction is, and
evaluated with score 1 at its true box. The shares are what torchvision's mask head is trained to
say; with --binary they are rounded to 0 and 1 first, as detectron2 and mmdetection do.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as run_lengths
from torchvision.ops import roi_align

from gmf_platform.evaluation import CocoEvaluator, CocoScores
from gmf_platform.evaluation.detection import encoded
from gmf_platform.models.heads import Detections


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("annotations", type=Path, help="COCO instances json")
    parser.add_argument("--images", type=int, nargs="+", metavar="ID", help="default: all")
    parser.add_argument("--cells", type=int, default=28, help="side of the mask head's output")
    parser.add_argument("--binary", action="store_true", help="cells are in or out")
    options = parser.parse_args()
    scores = mask_limit(
        options.annotations, options.images, cells=options.cells, binary=options.binary
    )
    for name, value in scores.values.items():
        print(f"{name:16} {value:.4f}")


def mask_limit(
    annotation_file: Path,
    image_ids: Sequence[int] | None = None,
    *,
    cells: int = 28,
    binary: bool = False,
) -> CocoScores:
    """COCO's scores of the true boxes and of the true masks at ``cells`` x ``cells``.

    Args:
        annotation_file: with masks.
        image_ids: to evaluate; None: all of the file.
        cells: side of the mask head's output.
        binary: a cell is in or out, by what covers most of it.
    """
    content = json.loads(annotation_file.read_text())
    categories = [category["id"] for category in content["categories"]]
    images = [x for x in content["images"] if image_ids is None or x["id"] in image_ids]
    evaluator = CocoEvaluator(
        annotation_file,
        image_ids=[image["id"] for image in images],
        category_ids=categories,
        class_names=[category["name"] for category in content["categories"]],
        masks=True,
    )
    for image in images:
        mine = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        objects = [a for a in mine if not a.get("iscrowd")]
        found = perfect(image, objects, categories, cells)
        if binary and found.masks is not None:
            found = found._replace(masks=(found.masks >= 0.5).float())
        evaluator.update(image["id"], encoded(found, size=(image["height"], image["width"])))
    return evaluator.compute()


def perfect(
    image: dict[str, Any], objects: Sequence[dict[str, Any]], categories: list[int], cells: int
) -> Detections:
    """The objects as a perfect detector would find them."""
    size = image["height"], image["width"]
    boxes = torch.tensor([x["bbox"] for x in objects], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    pairs = zip(objects, boxes, strict=True)
    masks = [at_cells(x["segmentation"], box, size, cells) for x, box in pairs]
    labels = torch.tensor([categories.index(x["category_id"]) for x in objects], dtype=torch.int64)
    whole = torch.stack(masks) if masks else torch.zeros(0, cells, cells)
    return Detections(boxes, torch.ones(len(boxes)), labels, whole)


def at_cells(
    segmentation: Any, box: torch.Tensor, size: tuple[int, int], cells: int
) -> torch.Tensor:
    """Share of each cell of a box that a mask covers."""
    pixels = torch.from_numpy(decoded(segmentation, size)).float()[None, None]
    region = torch.cat([torch.zeros(1), box])[None]
    whole: torch.Tensor = roi_align(pixels, region, cells, sampling_ratio=8, aligned=True)
    return whole[0, 0]


def decoded(segmentation: Any, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A mask (H, W) from polygons or run lengths."""
    if isinstance(segmentation, list):
        segmentation = run_lengths.merge(run_lengths.frPyObjects(segmentation, *size))
    elif isinstance(segmentation["counts"], list):
        segmentation = run_lengths.frPyObjects(segmentation, *size)
    return np.ascontiguousarray(run_lengths.decode(segmentation))


if __name__ == "__main__":
    main()
