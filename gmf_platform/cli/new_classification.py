"""From a look at folders of classes to a classification config."""

import math
import re
import textwrap
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import yaml

from datamodules.class_folders import class_folders
from datamodules.histogram import evenly_spaced
from datamodules.imagenet import ImageNet
from datamodules.images import image_size
from gmf_platform.cli.arguments import find_config
from gmf_platform.errors import UserError

__all__ = ["ClassSizing", "ClassSurvey", "look_at", "notes", "size_training", "write_config"]

_LOOKED_AT = 100
_SHOWN = 20
_UNEVEN = 10
"""Images of the largest class for one of the smallest, from which on the note speaks of it."""
_PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}


@dataclass(frozen=True)
class ClassSurvey:
    """What a look at folders of classes shows.

    Attributes:
        root: the folder.
        val_fraction: share to be kept for validation; None: the folder has a part for it.
        counts: training images by class, in label order; without a split, all images.
        num_val: validation images; without a split, none.
        lacking: classes without validation images.
        sizes: height and width of up to 100 training images.
    """

    root: Path
    val_fraction: float | None
    counts: dict[str, int]
    num_val: int
    lacking: list[str]
    sizes: list[tuple[int, int]]

    @property
    def num_trained(self) -> int:
        """Images to train with."""
        return round(sum(self.counts.values()) * (1 - (self.val_fraction or 0)))


def look_at(root: Path) -> ClassSurvey:
    """Look at a folder of classes, or at its ``train`` and ``val``.

    Raises:
        UserError: there are no classes, or the folders are not understood.
    """
    names = class_folders(root)
    if not names:
        what = "holds no folders" if root.is_dir() else "there is no such folder"
        raise UserError(f"--images {root}: {what}; a folder for each class is needed")
    divided = {"train", "val"} <= set(names)
    if not divided and (parts := sorted(_PARTS & {name.lower() for name in names} - {"train"})):
        raise UserError(
            f"--images {root}: holds {', '.join(parts)}, which look like parts of a set and not "
            "like classes: call the training part train and the validation part val, or move "
            "one of them elsewhere"
        )
    data = ImageNet(
        str(root), val_fraction=None if divided else 0.5, allow_empty_classes=divided, num_workers=0
    )
    entries = data.found("training").whole()
    held_out = data.found("validation").whole()
    val = Counter(label for _, label in held_out)
    if not divided:
        entries, held_out = sorted(entries + held_out), []
    counted = Counter(label for _, label in entries)
    counts = {name: counted[label] for label, name in enumerate(data.class_names)}
    _check(root, counts)
    looked_at = evenly_spaced([root / name for name, _ in entries], _LOOKED_AT)
    return ClassSurvey(
        root=root,
        val_fraction=None if divided else (0.1 if len(entries) >= 1000 else 0.2),
        counts=counts,
        num_val=len(held_out),
        lacking=[n for i, n in enumerate(data.class_names) if divided and not val[i]],
        sizes=[image_size(path) for path in looked_at],
    )


def _check(root: Path, counts: dict[str, int]) -> None:
    empty = [name for name, count in counts.items() if not count]
    if empty:
        raise UserError(f"--images {root}: no training images of {', '.join(empty[:3])}")
    if len(counts) < 2:
        raise UserError(f"--images {root}: holds one class, {next(iter(counts))}; 2 are needed")


def notes(survey: ClassSurvey) -> list[str]:
    """What a user should know of the data, in sentences."""
    counts = sorted(survey.counts.items(), key=lambda item: item[1])
    (rarest, few), (commonest, many) = counts[0], counts[-1]
    said = [f"{sum(survey.counts.values())} images of {len(counts)} classes"]
    if many > _UNEVEN * few:
        said.append(
            f"the classes are uneven, {many} images of {commonest} and {few} of {rarest}: look at "
            "val/macc, the mean over classes, beside val/top1; model.loss.class_weights can make "
            "rare classes count more"
        )
    if survey.lacking:
        some = ", ".join(survey.lacking[:3])
        said.append(f"{len(survey.lacking)} classes have no validation images: {some}")
    if survey.val_fraction is not None:
        said.append(
            f"there is no val folder: {survey.val_fraction:.0%} of each class is for validation. "
            "Where pictures of one scene or patient are in a class together, choose them "
            "yourself, with data.val_list"
        )
    return said


@dataclass(frozen=True)
class ClassSizing:
    """The figures of a run that depend on the number and size of the images.

    Attributes:
        variant: of GroupMixFormer.
        batch: global batch.
        epochs: passes over the training images.
        warmup: of those, for the rise of the learning rate.
        val_epochs: passes from one validation to the next.
        image_size: side of the network's input in pixels.
    """

    variant: str
    batch: int
    epochs: int
    warmup: int
    val_epochs: int
    image_size: int


def size_training(survey: ClassSurvey) -> ClassSizing:
    """Size a run that begins with ImageNet weights.

    - variant: mobile under 2,000 images, small from 200,000, tiny between;
    - batch: ImageNet's 512, halved until an epoch has 20 batches, but at least 16 for batch norm;
    - epochs: 30, as Swin's fine-tuning, or more up to 300 until there are 3,000 steps;
    - warm-up: a fifteenth of them, as in cls_imagenet; 20 validations;
    - image size: 224, or the median short side if that is less, in whole 32s, but at least 128.
    """
    trained = survey.num_trained
    if trained < 2:
        raise UserError(f"--images {survey.root}: {trained} images are too few to train with")
    batch = 512
    while batch > 16 and trained < 20 * batch:
        batch //= 2
    batch = min(batch, trained)
    epochs = min(max(30, math.ceil(3000 * batch / trained)), 300)
    short = median(min(size) for size in survey.sizes)
    return ClassSizing(
        variant="mobile" if trained < 2000 else "small" if trained >= 200_000 else "tiny",
        batch=batch,
        epochs=epochs,
        warmup=max(1, epochs // 15),
        val_epochs=max(1, epochs // 20),
        image_size=min(max(round(short / 32) * 32, 128), 224),
    )


def write_config(survey: ClassSurvey, *, name: str) -> str:
    """A config that is complete in itself: the model of cls_imagenet, and data and trainer for these.

    Args:
        survey: the look at the data.
        name: of the config's file.
    """
    sizing = size_training(survey)
    return _head(survey, name) + _recipe(sizing) + _data(survey, sizing) + _trainer(survey, sizing)


def _head(survey: ClassSurvey, name: str) -> str:
    sentences = " ".join(f"{line[0].upper()}{line[1:]}." for line in notes(survey))
    said = "".join(f"# {line}\n" for line in textwrap.wrap(sentences, width=98))
    return f"""\
# {name}: written by `new cls`.
{said}#
#   python -m gmf_platform check-data --config {name}.yaml
#   python -m gmf_platform fit --config {name}.yaml
#
# The model is that of configs/cls_imagenet.yaml, which names the sources [gmf] and [timm].

seed_everything: 0

# ImageNet weights, from the authors' Model Zoo; the name follows the variant. The head is new.
# `none` trains from scratch, which takes more epochs and a higher learning rate.
init_from: ${{oc.env:GMF_PRETRAINED,pretrained}}/groupmixformer_\
${{model.init_args.backbone.init_args.variant}}.pth

"""


def _recipe(sizing: ClassSizing) -> str:
    """The model of cls_imagenet, with the variant and warm-up of this run."""
    text = find_config("cls_imagenet").read_text()
    recipe = text[text.index("model:\n") : text.index("\ndata:\n") + 1]
    changes = {
        r"variant: \w+": f"variant: {sizing.variant}",
        r"warmup_epochs:.*": f"warmup_epochs: {sizing.warmup} # a fifteenth, as in cls_imagenet",
    }
    for pattern, line in changes.items():
        recipe, found = re.subn(pattern, line, recipe)
        if found != 1:
            raise RuntimeError(f"cls_imagenet has no single {pattern}")
    return recipe


def _data(survey: ClassSurvey, sizing: ClassSizing) -> str:
    lines = [
        f"root: {_scalar(str(survey.root.absolute()))}",
        *_division(survey),
        *_classes(survey),
        f"global_batch_size: {sizing.batch} # 512, or less so that an epoch has 20 batches",
        "per_device_batch_size: null # null: all of a device's share at once; less is accumulated",
        f"image_size: {sizing.image_size} # {_pixels(survey, sizing)}",
        "scale: [0.08, 1.0] # [timm]; [0.35, 1.0] where a class is told by small things",
        "interpolation: bicubic # [gmf]",
        "hflip: 0.5 # [timm]; 0.0 where left and right differ, as in writing",
        "rand_augment: rand-m9-mstd0.5-inc1 # [gmf]",
    ]
    body = "".join(f"    {line}\n" for line in lines)
    return f"data:\n  class_path: datamodules.ImageNet\n  init_args:\n{body}\n"


def _division(survey: ClassSurvey) -> list[str]:
    if survey.val_fraction is not None:
        return [f"val_fraction: {survey.val_fraction} # or val_list: FILE, of image names"]
    return ["allow_empty_classes: true # in val"] if survey.lacking else []


def _classes(survey: ClassSurvey) -> list[str]:
    shown = list(survey.counts.items())[:_SHOWN]
    rest = len(survey.counts) - len(shown)
    lines = [f"  {name}: {count}" for name, count in shown]
    lines += [f"  and {rest} more"] * (rest > 0)
    part = "training images" if survey.val_fraction is None else "images"
    heading = f"{len(survey.counts)} classes, the folders in sorted order, with their {part}:"
    return [f"# {line}" for line in (heading, *lines)]


def _pixels(survey: ClassSurvey, sizing: ClassSizing) -> str:
    short = median(min(size) for size in survey.sizes)
    long = median(max(size) for size in survey.sizes)
    seen = f"images are {long:.0f} x {short:.0f} in the middle"
    return f"{seen}; more, such as 384, sees finer detail" * (short > 448) or seen


def _trainer(survey: ClassSurvey, sizing: ClassSizing) -> str:
    steps = math.ceil(sizing.epochs * survey.num_trained / sizing.batch)
    return f"""\
trainer:
  max_epochs: {sizing.epochs} # about {steps} steps: 30 epochs, or up to 300 for 3000 steps
  val_check_interval: 1.0
  check_val_every_n_epoch: {sizing.val_epochs}
  precision: null # null: the best of the device: bf16-mixed, 16-mixed, or float32 on a CPU
  log_every_n_steps: 50
  gradient_clip_val: 5.0 # [gmf]

checkpoint:
  every_n_steps: {min(1000, max(1, steps // 20))}
  monitor: val/top1 # or val/macc, the mean over classes
"""


def _scalar(text: str) -> str:
    """A string as YAML writes it on a line, in quotes where they are needed."""
    return yaml.safe_dump(text, width=math.inf, allow_unicode=True).splitlines()[0]
