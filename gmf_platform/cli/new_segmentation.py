"""From a look at images and masks to a segmentation config."""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import yaml

from datamodules.labels import IGNORE, MAX_CLASSES
from datamodules.survey import Survey
from gmf_platform.cli.arguments import find_config
from gmf_platform.errors import UserError

__all__ = ["Meaning", "Sizing", "decide", "size_training", "write_config"]


@dataclass(frozen=True)
class Meaning:
    """What the values in masks are taken for.

    Attributes:
        zero_is: see SegmentationFiles, as the next.
        ignore_value: another ignored value.
        classes: class names, each with its value in the masks, in label order.
        is_palette: the values are colours or grey values, to be listed in ``data.palette``.
        evidence: why, in sentences.
    """

    zero_is: Literal["class", "ignore"]
    ignore_value: int | None
    classes: list[tuple[str, int]]
    is_palette: bool
    evidence: list[str]


def decide(survey: Survey, names: Sequence[str] | None) -> Meaning:
    """Decide what the values in masks mean.

    In doubt 0 is a class: a class too many is seen at the first look, a class that is silently
    ignored is not. 255 is ignored where the other values are numbers without great gaps. One name
    for two values is that of the second, beside a background.

    Args:
        survey: the look at them.
        names: class names in the order of their values; they may tell whether 0 has one.

    Raises:
        UserError: fewer than 2 classes, or names that do not fit the values.
    """
    values = list(survey.histogram)
    if len(values) < 2:
        only = _shown(values[0], survey)
        raise UserError(
            f"--masks: all {survey.looked_at} masks hold nothing but {only}: no classes"
        )
    if names is not None and len(names) == 1 and len(values) == 2:
        names = ["background", *names]
    numbers = [value for value in values if value != IGNORE]
    top = max(numbers, default=0)
    has_gaps = 2 * len(numbers) <= top and top > len(names or ())
    if survey.is_colour or has_gaps or len(numbers) < 2 <= len(values):
        return _by_palette(survey, names)
    return _by_number(survey, names, numbers)


def _by_palette(survey: Survey, names: Sequence[str] | None) -> Meaning:
    values = list(survey.histogram)
    shares = ", ".join(f"{_shown(v, survey)} ({_percent(survey, v)})" for v in values[:8])
    shares += ", ..." if len(values) > 8 else ""
    if survey.is_colour and names is not None:
        raise UserError(
            f"--classes: the masks are colour pictures of {shares}, and names in a list do not say "
            "which is which: leave --classes out and rename class_0, ... in the config's palette"
        )
    if names is None:
        pair = ["background", "object"] if values == [0, IGNORE] else None
        names = pair or [f"class_{i}" for i in range(len(values))]
    if len(set(names)) < len(names):
        raise UserError("--classes: a name stands there twice")
    if len(names) != len(values):
        raise UserError(
            f"--classes: {len(names)} names, but the masks hold {len(values)} values: {shares}"
        )
    kind = "colours" if survey.is_colour else "grey values"
    evidence = [f"the masks hold the {kind} {shares}: each is taken for a class"]
    return Meaning("class", None, list(zip(names, values, strict=True)), True, evidence)


def _by_number(survey: Survey, names: Sequence[str] | None, numbers: list[int]) -> Meaning:
    top, share = max(numbers), _percent(survey, 0)
    count = None if names is None else len(names)
    zero_is: Literal["class", "ignore"] = "class"
    evidence = [f"the masks hold values from {min(numbers)} to {top}"]
    if 0 not in survey.histogram:
        zero_is = "ignore"
        evidence.append("0 does not occur: the classes are counted from 1")
    elif count == top:
        zero_is = "ignore"
        evidence.append(f"0 ({share}) is ignored: there are {count} names for 1 to {top}")
    else:
        evidence.append(
            f"0 ({share}) is taken for a class; if it is for pixels without one: "
            "data.zero_is ignore, and its name taken out of data.classes"
        )
    ignore_value = IGNORE if IGNORE in survey.histogram else None
    if ignore_value is not None:
        evidence.append(f"255 ({_percent(survey, IGNORE)}) is ignored, as is usual")
    first = int(zero_is == "ignore")
    needed = top + 1 - first
    names = names or [f"class_{value}" for value in range(first, top + 1)]
    if needed > len(names):
        raise UserError(f"--classes: {len(names)} names, but the masks hold values up to {top}")
    if not 2 <= len(names) <= MAX_CLASSES:
        raise UserError(f"--masks: {len(names)} classes; 2 to {MAX_CLASSES} can be learned")
    if needed < len(names):
        evidence.append(
            f"there are {len(names)} names, so values up to {len(names) - 1 + first} are expected"
        )
    classes = [(name, first + label) for label, name in enumerate(names)]
    return Meaning(zero_is, ignore_value, classes, False, evidence)


def _percent(survey: Survey, value: int) -> str:
    return f"{survey.histogram.get(value, 0.0):.1%}"


def _shown(value: int, survey: Survey) -> str:
    return str(_colour(value)) if survey.is_colour else str(value)


def _colour(value: int) -> list[int]:
    return [value >> 16, value >> 8 & 255, value & 255]


@dataclass(frozen=True)
class Sizing:
    """The figures of a run that depend on the number and size of the images.

    Attributes:
        batch: global batch.
        steps: optimiser steps.
        warmup: of those, for the rise of the learning rate.
        interval: steps from one validation to the next.
        val_fraction: share of the images kept for validation.
        crop: side of the crops in pixels.
        scale: resize bound (long side, short side) in pixels.
    """

    batch: int
    steps: int
    warmup: int
    interval: int
    val_fraction: float
    crop: int
    scale: tuple[int, int]


def size_training(survey: Survey) -> Sizing:
    """Size a run to a data set, by the measure of the ADE20K recipe.

    That recipe is 160,000 steps of 16 crops over 20,210 images: 127 passes, 1,500 steps of
    warm-up, ten validations, crops of 512 from images whose short side is made 512 and whose long
    side at most four times that. So:

    - validation: a tenth of the images, a fifth of fewer than 200;
    - batch: 16, halved until an epoch has 8 batches, but at least 4, for batch norm;
    - steps: 127 passes, but 4,000 to 160,000, to two digits;
    - warm-up: 1,500 steps, but at most a tenth; a validation each tenth;
    - crop: the median short side, in whole 32s from 128 to 512; the long side at most four times
      that, or as the longest image has it.
    """
    fraction = 0.1 if survey.num_images >= 200 else 0.2
    trained = survey.num_images - max(1, round(survey.num_images * fraction))
    if trained < 2:
        raise UserError(f"--images: {survey.num_images} images are too few to train and validate")
    batch = 16
    while batch > 4 and trained < 8 * batch:
        batch //= 2
    batch = min(batch, trained)
    steps = _two_digits(min(max(127 * trained / batch, 4000), 160_000))
    crop = round(median(min(size) for size in survey.sizes) / 32) * 32
    crop = min(max(crop, 128), 512)
    longest = max(max(size) / min(size) for size in survey.sizes)
    return Sizing(
        batch=batch,
        steps=steps,
        warmup=min(1500, steps // 10),
        interval=steps // 10,
        val_fraction=fraction,
        crop=crop,
        scale=(math.ceil(max(4.0, longest) * crop), crop),
    )


def _two_digits(number: float) -> int:
    unit = 10 ** (len(str(int(number))) - 2)
    return round(number / unit) * unit


def write_config(survey: Survey, meaning: Meaning, images: Path, masks: Path, *, name: str) -> str:
    """A config that is complete in itself: the model of seg_ade20k, and data and trainer for these.

    Args:
        survey: the look at the data.
        meaning: of the masks' values.
        images: folder or pattern.
        masks: likewise.
        name: of the config's file.
    """
    sizing = size_training(survey)
    return (
        _head(survey, meaning, name)
        + _recipe(sizing)
        + _data(survey, meaning, sizing, images, masks)
        + _trainer(sizing)
    )


def _head(survey: Survey, meaning: Meaning, name: str) -> str:
    return f"""\
# {name}: {survey.num_images} images, {len(meaning.classes)} classes. Written by `new seg`, which \
looked at {survey.looked_at} masks.
#
#   python -m gmf_platform check-data --config {name}.yaml
#   python -m gmf_platform fit --config {name}.yaml
#
# The model is that of configs/seg_ade20k.yaml, which names the sources [swin] and [gmf].

"""


def _recipe(sizing: Sizing) -> str:
    """The parts of seg_ade20k above its data, with the warm-up of this run."""
    text = find_config("seg_ade20k").read_text()
    begin, end = text.index("seed_everything:"), text.index("\ndata:\n") + 1
    line = f"warmup_steps: {sizing.warmup} # at most a tenth of the steps"
    recipe, found = re.subn(r"warmup_steps:.*", line, text[begin:end])
    if found != 1:
        raise RuntimeError("seg_ade20k has no single warmup_steps")
    return recipe


def _data(survey: Survey, meaning: Meaning, sizing: Sizing, images: Path, masks: Path) -> str:
    root = _common_folder(images.absolute(), masks.absolute())
    lines = [
        f"root: {_scalar(str(root))}",
        f"images: {_scalar(str(images.absolute().relative_to(root)))}",
        f"masks: {_scalar(str(masks.absolute().relative_to(root)))}",
        f"mask_suffix: {_scalar(survey.mask_suffix)}",
        *(f"# {line}" for line in meaning.evidence),
        f"zero_is: {meaning.zero_is} # class, or ignore",
        f"ignore_value: {'null' if meaning.ignore_value is None else meaning.ignore_value}",
        *_classes(survey, meaning),
        f"val_fraction: {sizing.val_fraction} # or val_list: FILE, of image names",
        *_odd_shares(survey, meaning),
        f"global_batch_size: {sizing.batch} # 16, or less so that an epoch has 8 batches",
        "per_device_batch_size: null # null: all of a device's share at once; less is accumulated",
        *_pixels(survey, sizing),
        "ratio_range: [0.5, 2.0] # [swin]",
    ]
    body = "".join(f"    {line}\n" for line in lines)
    return f"data:\n  class_path: datamodules.SegmentationFiles\n  init_args:\n{body}\n"


def _common_folder(images: Path, masks: Path) -> Path:
    """The folder above both, itself no pattern."""
    common = Path(os.path.commonpath([images, masks]))
    return next(path for path in (common, *common.parents) if path.is_dir())


def _classes(survey: Survey, meaning: Meaning) -> list[str]:
    if meaning.is_palette:
        lines = [
            f"  {_scalar(name)}: {_colour(value if survey.is_colour else value * 0x010101)}"
            f" # {_percent(survey, value)} of the pixels"
            for name, value in meaning.classes
        ]
        return ["palette: # name: [R, G, B] in the masks", *lines]
    lines = [
        f"  - {_scalar(name)} # value {value}, {_percent(survey, value)} of the pixels"
        for name, value in meaning.classes
    ]
    return ["classes:", *lines]


def _odd_shares(survey: Survey, meaning: Meaning) -> list[str]:
    """Keys that are needed only where one value fills most of the pixels."""
    labelled = [survey.histogram.get(value, 0.0) for _, value in meaning.classes]
    total = sum(labelled)
    lines = []
    if total < 0.5:
        lines.append(f"check_masks: 0 # {1 - total:.0%} of the pixels are ignored: is that meant?")
    share = max(labelled) / total
    if share > 0.7:
        lines.append(f"max_category_ratio: 1.0 # any crop: one class has {share:.0%} of the pixels")
    else:
        lines.append("max_category_ratio: 0.75 # [swin]")
    return lines


def _pixels(survey: Survey, sizing: Sizing) -> list[str]:
    short = sorted(min(size) for size in survey.sizes)
    long = sorted(max(size) for size in survey.sizes)
    seen = f"images are {median(long):.0f} x {median(short):.0f} in the middle"
    if median(short) > 1.5 * sizing.crop:
        seen += "; more, such as 768, keeps finer detail"
    return [
        f"crop_size: {sizing.crop} # {seen}",
        f"scale: [{sizing.scale[0]}, {sizing.scale[1]}] # long side at most, short side",
    ]


def _trainer(sizing: Sizing) -> str:
    return f"""\
trainer:
  max_steps: {sizing.steps} # 127 passes as in seg_ade20k, but at least 4000 steps
  val_check_interval: {sizing.interval}
  precision: null # null: the best of the device: bf16-mixed, 16-mixed, or float32 on a CPU
  log_every_n_steps: 50
  gradient_clip_val: null # [swin] none

checkpoint:
  every_n_steps: {min(2000, sizing.interval)}
  monitor: val/miou
"""


def _scalar(text: str) -> str:
    """A string as YAML writes it on a line, in quotes where they are needed."""
    return yaml.safe_dump(text, width=math.inf, allow_unicode=True).splitlines()[0]
