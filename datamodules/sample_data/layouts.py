"""The official folder layouts of ADE20K, COCO and ImageNet, filled with scenes."""

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from datamodules.sample_data.outlines import bounding_box, run_lengths, to_polygons
from datamodules.sample_data.scenes import GROUNDS, SHAPES, Scene, SceneObject, Split
from datamodules.sample_data.shapes import Shape

__all__ = ["write_ade20k", "write_coco", "write_imagenet"]

# With gaps, as the official ids 1..90 of 80 classes have them.
COCO_IDS: Final[dict[Shape, int]] = {"disc": 1, "square": 2, "triangle": 4, "star": 7, "ring": 11}
# Like WordNet offsets, of a range that WordNet 3.0 (00001740..15300051) does not use.
WNIDS: Final[dict[Shape, str]] = {s: f"n9000000{i}" for i, s in enumerate(SHAPES, start=1)}


def write_ade20k(root: Path, train: Iterable[Scene], val: Iterable[Scene]) -> None:
    """Write scenes in the layout of ADEChallengeData2016.

    Masks are 8-bit PNG: 0 other, then the classes of ``objectInfo150.txt``, which gives each class's
    share of the training pixels and the number of images of each split that show it.

    Args:
        root: Existing folder to fill.
        train: Scenes for ``training/``.
        val: Scenes for ``validation/``.
    """
    pixels, train_images = _write_ade20k_split(root, "train", "training", train)
    _, val_images = _write_ade20k_split(root, "val", "validation", val)
    lines = ["Idx\tRatio\tTrain\tVal\tName"]
    for number, name in enumerate((*GROUNDS, *SHAPES), start=1):
        ratio = pixels[number] / pixels.sum()
        lines.append(f"{number}\t{ratio:.4f}\t{train_images[number]}\t{val_images[number]}\t{name}")
    (root / "objectInfo150.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_ade20k_split(
    root: Path, short: Split, folder: str, scenes: Iterable[Scene]
) -> tuple[np.ndarray, np.ndarray]:
    """Write one split; return the pixels and the images of each label, 0 included."""
    images, masks = root / "images" / folder, root / "annotations" / folder
    images.mkdir(parents=True)
    masks.mkdir(parents=True)
    classes = 1 + len(GROUNDS) + len(SHAPES)
    pixels, occurs = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    for scene in scenes:
        name = f"ADE_{short}_{scene.index + 1:08d}"
        (images / f"{name}.jpg").write_bytes(_jpeg(scene))
        Image.fromarray(scene.labels).save(masks / f"{name}.png", optimize=True)
        counts = np.bincount(scene.labels.ravel(), minlength=classes)
        pixels += counts
        occurs += counts > 0
    return pixels, occurs


def write_coco(root: Path, train: Iterable[Scene], val: Iterable[Scene]) -> None:
    """Write scenes in the layout of COCO 2017: objects as polygons, crowds as run lengths.

    Args:
        root: Existing folder to fill.
        train: Scenes for ``train2017/``.
        val: Scenes for ``val2017/``.
    """
    (root / "annotations").mkdir()
    _write_coco_split(root, "train", train)
    _write_coco_split(root, "val", val)


def _write_coco_split(root: Path, split: Split, scenes: Iterable[Scene]) -> None:
    folder = root / f"{split}2017"
    folder.mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for scene in scenes:
        # Odd in train and even in val, so that no id stands for two pictures.
        image_id = 2 * scene.index + (1 if split == "train" else 2)
        name = f"{image_id:012d}.jpg"
        (folder / name).write_bytes(_jpeg(scene))
        images.append(_coco_image(scene, name, image_id))
        for number, thing in enumerate(scene.objects):
            annotations.append(_coco_annotation(thing, image_id, 100 * image_id + number))
    content = {
        "info": _COCO_INFO,
        "licenses": _COCO_LICENSES,
        "images": images,
        "annotations": annotations,
        "categories": [
            {"supercategory": "shape", "id": COCO_IDS[shape], "name": shape} for shape in SHAPES
        ],
    }
    path = root / "annotations" / f"instances_{split}2017.json"
    path.write_text(json.dumps(content), encoding="utf-8")


_COCO_DATE: Final = "2017-09-01 00:00:00"  # fixed, so that a sample is the same on every day
_COCO_INFO: Final = {
    "description": "Drawn sample in the layout of COCO 2017",
    "url": "",
    "version": "1.0",
    "year": 2017,
    "contributor": "gmf_platform",
    "date_created": "2017/09/01",
}
_COCO_LICENSES: Final = [
    {
        "url": "https://creativecommons.org/publicdomain/zero/1.0/",
        "id": 1,
        "name": "CC0 1.0 Universal",
    }
]


def _coco_image(scene: Scene, name: str, image_id: int) -> dict[str, Any]:
    height, width = scene.labels.shape
    return {
        "license": 1,
        "file_name": name,
        "coco_url": "",
        "height": height,
        "width": width,
        "date_captured": _COCO_DATE,
        "flickr_url": "",
        "id": image_id,
    }


def _coco_annotation(thing: SceneObject, image_id: int, number: int) -> dict[str, Any]:
    outline = run_lengths(thing.mask) if thing.crowd else to_polygons(thing.mask)
    return {
        "segmentation": outline,
        "area": int(thing.mask.sum()),
        "iscrowd": int(thing.crowd),
        "image_id": image_id,
        "bbox": bounding_box(thing.mask),
        "category_id": COCO_IDS[thing.shape],
        "id": number,
    }


def write_imagenet(root: Path, train: Iterable[Scene], val: Iterable[Scene]) -> None:
    """Write scenes in the folder layout of ImageNet: one folder per class of the main object.

    Args:
        root: Existing folder to fill.
        train: Scenes for ``train/``; each has an object.
        val: Scenes for ``val/``; each has an object.

    Raises:
        ValueError: A scene has no object, so no class.
    """
    for split, scenes in (("train", train), ("val", val)):
        for wnid in WNIDS.values():
            (root / split / wnid).mkdir(parents=True)
        for scene in scenes:
            if scene.main_shape is None:
                raise ValueError(f"scene {scene.index} of {split} has no object to name it after")
            wnid = WNIDS[scene.main_shape]
            stem = f"{wnid}_{scene.index + 1}"
            if split == "val":
                stem = f"ILSVRC2012_val_{scene.index + 1:08d}"
            (root / split / wnid / f"{stem}.JPEG").write_bytes(_jpeg(scene))


def _jpeg(scene: Scene) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(scene.image).save(buffer, format="JPEG", quality=92)
    return buffer.getvalue()
