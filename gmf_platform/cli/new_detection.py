"""From a look at COCO annotation files to a detection config."""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import yaml

from datamodules.coco_annotations import CocoAnnotations
from datamodules.coco_json import read_coco
from gmf_platform.cli.arguments import find_config
from gmf_platform.errors import UserError, counted

__all__ = ["DetectionSizing", "Part", "look_at", "notes", "size_training", "write_config"]

Model = Literal["det_coco_retinanet", "det_coco_mask_rcnn"]


@dataclass(frozen=True)
class Part:
    """An annotation file with its folder of images, looked at.

    Attributes:
        images: the folder.
        content: of the file; with masks, if each object has a shape.
        objects: without crowds, of each class in label order (K,).
        with_shape: how many of the objects have a shape.
        absent: names of images that are not in the folder.
    """

    images: Path
    content: CocoAnnotations
    objects: list[int]
    with_shape: int
    absent: list[str]


def look_at(images: Path, annotations: Path, *, train: Part | None = None) -> Part:
    """Read an annotation file, and see that its images are there.

    Args:
        images: the folder that its file names begin in.
        annotations: the file.
        train: the training images, if these are others; both must have the same classes.

    Raises:
        UserError: the file is missing or not COCO, has no object or other classes, or none of its
            images is in the folder.
    """
    classes, named_in = (train.content.class_names, train.content.path) if train else (None, None)
    content = read_coco(annotations, classes=classes, named_in=named_in, with_masks=True)
    absent = [
        name for i in range(len(content)) if not (images / (name := content.file_name(i))).is_file()
    ]
    if len(absent) == len(content):
        example = f", such as {absent[0]}" if absent else ""
        raise UserError(
            f"{images}: holds none of the images that {annotations} lists{example}: "
            "name the folder that their file_name begins in"
        )
    objects = ~content.crowd
    if not objects.any():
        raise UserError(f"{annotations}: has no object to learn from")
    counts = np.bincount(content.labels[objects], minlength=len(content.class_names))
    with_shape = int(content.is_object.sum())
    if with_shape < counts.sum():
        content = replace(content, with_masks=False)  # each object is one of boxes
    return Part(images, content, counts.tolist(), with_shape, absent)


def notes(parts: Sequence[Part]) -> list[str]:
    """What a user should know of the files, in sentences.

    Args:
        parts: the training images, then those of validation if they have a file of their own.
    """
    content, objects = parts[0].content, parts[0].objects
    said = [
        f"{_images(len(content))}, {_objects(sum(objects))} of "
        + counted(len(objects), "category", "categories"),
        _why(parts),
    ]
    never = [name for name, n in zip(content.class_names, objects, strict=True) if not n]
    if never:
        said.append(f"categories without an object, which cannot be learned: {', '.join(never)}")
    return said + [line for part in parts for line in _remarks(part)]


def _why(parts: Sequence[Part]) -> str:
    """The reason for masks or none."""
    for part in parts:
        count = sum(part.objects)
        if part.with_shape < count:
            missing = counted(count - part.with_shape, "has no mask", "have no mask")
            return (
                f"{part.content.path.name}: of {_objects(count)} {missing}: the config is "
                "RetinaNet, for boxes"
            )
    return "each object has a mask: the config is Mask R-CNN"


def _remarks(part: Part) -> list[str]:
    """What is left out, and what `fit` would refuse."""
    path, wrong, absent = part.content.path, part.content.problems, part.absent
    lines = part.content.left_out()
    if wrong:
        lines.append(
            f"{path}: {counted(len(wrong), 'entry is', 'entries are')} wrong, which fit would "
            f"refuse; `check-data` lists all, the first is: {wrong[0]}"
        )
    if absent:
        lines.append(
            f"{path}: {counted(len(absent), 'image is', 'images are')} not in {part.images}, which "
            f"fit would refuse; the first is {absent[0]}"
        )
    return lines


@dataclass(frozen=True)
class DetectionSizing:
    """The figures of a run that depend on the number and size of the images.

    Attributes:
        batch: global batch.
        epochs: of the training images.
        milestones: epochs after which the learning rate falls.
        warmup: optimiser steps, of the rise of the learning rate.
        interval: epochs from one validation to the next.
        val_fraction: share of the images kept for validation; None if there is a file for it.
        scale: the sides that images are resized to fit into, long and short, in pixels.
    """

    batch: int
    epochs: int
    milestones: tuple[int, int]
    warmup: int
    interval: int
    val_fraction: float | None
    scale: tuple[int, int]


def size_training(train: Part, *, has_val: bool) -> DetectionSizing:
    """Size a run to a data set, by the measure of the COCO recipe.

    That recipe is 12 epochs of 117,266 images in batches of 16, with 500 steps of warm-up; the
    images' short sides, 480 pixels in the middle, are made 800. So:

    - validation, without a file for it: a tenth of the images, a fifth of fewer than 200;
    - batch: 16, halved until an epoch has 8 batches, but at least 4;
    - epochs: 12, but at least 4,000 steps; the rate falls after 8 and 11 twelfths of them;
    - warm-up: 500 steps, but at most a tenth; a validation each epoch, but at most 12;
    - short side: the median one times 800 / 480, in whole 32s from 256 to 800; the long side at
      most 1333 / 800 of it, or as the longest image has it, up to twice.

    Raises:
        UserError: there are too few images.
    """
    used = int((train.content.num_objects > 0).sum())
    fraction = None if has_val else 0.1 if used >= 200 else 0.2
    trained = used - (max(1, round(used * fraction)) if fraction else 0)
    if trained < 2:
        raise UserError(
            f"{train.content.path}: {counted(used, 'image', 'images')} with objects: too few to "
            "train and validate"
        )
    batch = 16
    while batch > 4 and trained < 8 * batch:
        batch //= 2
    batch = min(batch, trained)
    epochs = max(12, math.ceil(4000 * batch / trained))
    steps = epochs * trained // batch
    sizes = train.content.sizes
    short = round(float(np.median(sizes.min(1))) * 800 / 480 / 32) * 32
    short = min(max(short, 256), 800)
    longest = float((sizes.max(1) / sizes.min(1)).max())
    return DetectionSizing(
        batch=batch,
        epochs=epochs,
        milestones=(round(epochs * 8 / 12), round(epochs * 11 / 12)),
        warmup=min(500, steps // 10),
        interval=math.ceil(epochs / 12),
        val_fraction=fraction,
        scale=(math.ceil(min(max(1333 / 800, longest), 2) * short), short),
    )


def write_config(parts: Sequence[Part], *, name: str) -> str:
    """A config that is complete in itself: a shipped model, and data and trainer for these files.

    Args:
        parts: the training images, then those of validation; one alone is divided.
        name: of the config's file.

    Raises:
        UserError: see `size_training`.
    """
    sizing = size_training(parts[0], has_val=len(parts) > 1)
    with_masks = all(part.content.with_masks for part in parts)
    model: Model = "det_coco_mask_rcnn" if with_masks else "det_coco_retinanet"
    return (
        _head(parts[0], model, name)
        + _recipe(model, sizing)
        + _data(parts, sizing, with_masks=with_masks)
        + _trainer(sizing, "val/mask_ap" if with_masks else "val/box_ap")
    )


def _head(train: Part, model: Model, name: str) -> str:
    sources = re.findall(r"\[\w+\]", _shipped(model).partition("\n\n")[0])
    return f"""\
# {name}: {_images(len(train.content))}, {counted(len(train.objects), "class", "classes")}. \
Written by `new det`, which looked at
# {train.content.path.name}.
#
#   python -m gmf_platform check-data --config {name}.yaml
#   python -m gmf_platform fit --config {name}.yaml
#
# The model is that of configs/{model}.yaml, which names the sources
# {", ".join(dict.fromkeys(sources))}.

"""


def _shipped(model: Model) -> str:
    return find_config(model).read_text()


def _recipe(model: Model, sizing: DetectionSizing) -> str:
    """The parts of a shipped config above its data, with the schedule of this run."""
    text = _shipped(model)
    recipe = text[text.index("seed_everything:") : text.index("\ndata:\n") + 1]
    changes = {
        r"warmup_steps:.*": f"warmup_steps: {sizing.warmup} # at most a tenth of the steps",
        r"milestones:.*": f"milestones: {list(sizing.milestones)} # epochs; 8 and 11 twelfths",
    }
    for pattern, line in changes.items():
        recipe, found = re.subn(pattern, line, recipe)
        if found != 1:
            raise RuntimeError(f"{model} has no single {pattern}")
    return recipe


def _data(parts: Sequence[Part], sizing: DetectionSizing, *, with_masks: bool) -> str:
    paths = [path.absolute() for p in parts for path in (p.images, p.content.path.parent)]
    root = Path(os.path.commonpath(paths))
    lines = [f"root: {_scalar(str(root))}"]
    for prefix, part in zip(("train_", "val_") if parts[1:] else ("",), parts, strict=True):
        lines += [
            f"{prefix}images: {_below(part.images, root)}",
            f"{prefix}annotations: {_below(part.content.path, root)}",
        ]
    if sizing.val_fraction is not None:
        lines.append(f"val_fraction: {sizing.val_fraction} # or val_list: FILE, of image ids")
    lines += [
        *_classes(parts[0]),
        f"global_batch_size: {sizing.batch} # 16, or less so that an epoch has 8 batches",
        "per_device_batch_size: null # null: all of a device's share at once; less is accumulated",
        f"scale: [{sizing.scale[0]}, {sizing.scale[1]}] # {_sizes_seen(parts[0])}",
        f"with_masks: {'true' if with_masks else 'false'}",
    ]
    body = "".join(f"    {line}\n" for line in lines)
    return f"data:\n  class_path: datamodules.COCO\n  init_args:\n{body}\n"


def _below(path: Path, root: Path) -> str:
    return _scalar(str(path.absolute().relative_to(root)))


def _classes(train: Part) -> list[str]:
    names, ids = train.content.class_names, train.content.category_ids
    return [
        "classes: # in label order",
        *(
            f"  - {_scalar(name)} # category {number}, {_objects(count)}"
            for name, number, count in zip(names, ids, train.objects, strict=True)
        ),
    ]


def _sizes_seen(train: Part) -> str:
    sizes = train.content.sizes
    long, short = np.median(sizes.max(1)), np.median(sizes.min(1))
    return f"long side, short side at most; images are {long:.0f} x {short:.0f} in the middle"


def _trainer(sizing: DetectionSizing, monitor: str) -> str:
    return f"""\
trainer:
  max_epochs: {sizing.epochs} # 12 as on COCO, but at least 4000 steps
  check_val_every_n_epoch: {sizing.interval}
  precision: null # null: the best of the device: bf16-mixed, 16-mixed, or float32 on a CPU
  log_every_n_steps: 50
  gradient_clip_val: null # none, as on COCO

checkpoint:
  every_n_steps: 500
  monitor: {monitor}
"""


def _images(number: int) -> str:
    return counted(number, "image", "images")


def _objects(number: int) -> str:
    return counted(number, "object", "objects")


def _scalar(text: str) -> str:
    """A string as YAML writes it on a line, in quotes where they are needed."""
    return yaml.safe_dump(text, width=math.inf, allow_unicode=True).splitlines()[0]
