"""What each data set's folder must hold, checked before any slow import."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmf_platform.errors import UserError

__all__ = [
    "CHECKS",
    "COCO",
    "FILES",
    "LAYOUTS",
    "UNDIVIDED",
    "Layout",
    "check_coco",
    "check_files",
    "check_root",
    "files_at",
]

FILES = "datamodules.SegmentationFiles"
"""The class whose files lie anywhere; `check_files` is for it what `check_root` is for layouts."""

COCO = "datamodules.COCO"
"""The class whose files lie as in COCO 2017 or are named one by one, so that `check_coco` checks it."""


@dataclass(frozen=True)
class Layout:
    """A data set's folder.

    Attributes:
        name: what people call the set.
        folders: sub-folders that must exist and hold files.
        source: where to get it, in one sentence.
        sample: the `sample-data` layout that makes a small set of this form.
    """

    name: str
    folders: tuple[str, ...]
    source: str
    sample: str


LAYOUTS: dict[str, Layout] = {
    "datamodules.ADE20K": Layout(
        name="ADE20K",
        folders=(
            "images/training",
            "annotations/training",
            "images/validation",
            "annotations/validation",
        ),
        source="download ADEChallengeData2016.zip (0.9 GB) from the MIT Scene Parsing Benchmark, "
        "sceneparsing.csail.mit.edu, and unpack it",
        sample="ade20k",
    ),
    COCO: Layout(
        name="COCO",
        folders=("train2017", "val2017", "annotations"),
        source="download train2017.zip (18 GB), val2017.zip (0.8 GB) and "
        "annotations_trainval2017.zip (0.2 GB) from cocodataset.org, and unpack them side by side; "
        "of a set of your own, name data.train_images, data.train_annotations, data.val_images and "
        "data.val_annotations",
        sample="coco",
    ),
    "datamodules.ImageNet": Layout(
        name="ImageNet",
        folders=("train", "val"),
        source="download ILSVRC2012_img_train.tar (138 GB) and ILSVRC2012_img_val.tar (6.3 GB) "
        "from image-net.org, or the set of the Kaggle competition "
        "imagenet-object-localization-challenge, and unpack them to train/CLASS/*.JPEG and "
        "val/*.JPEG; other sets have train/CLASS/* and val/CLASS/*, or CLASS/* and "
        "data.val_fraction",
        sample="imagenet",
    ),
}

UNDIVIDED = ("val_fraction", "val_list")
"""Keys of ``data`` that divide a set whose folder has no training and validation part."""


def check_root(root: Path, layout: Layout, *, is_divided: bool = True) -> None:
    """Check that a data set's folder has its sub-folders, or tar shards in their place.

    Args:
        root: the folder.
        layout: what it must hold.
        is_divided: False if any content will do, since a key of ``data`` divides it.

    Raises:
        UserError: naming what is missing, where to get the set, and how to make a sample of it.
    """
    folders = layout.folders if is_divided else (".",)
    missing = [name for name in folders if not (_has_files(root / name) or _shard(root, name))]
    if not missing:
        return
    what = "does not exist" if not root.is_dir() else f"has no files in {', '.join(missing)}"
    raise UserError(
        f"{layout.name}: the folder {root} {what}.\n"
        f"  - the real data: {layout.source}; then --data.root FOLDER, or set GMF_DATA to the "
        f"folder above it\n"
        f"  - to try without it: python -m gmf_platform sample-data {layout.sample} "
        f"data/sample_{layout.sample}, then --data.root data/sample_{layout.sample}"
    )


def _shard(root: Path, name: str) -> Path | None:
    """A tar file beside the sub-folder's place, with its name in it."""
    return next(root.glob(f"*{name}*.tar"), None)


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and next(folder.iterdir(), None) is not None


def check_files(keys: Mapping[str, Any]) -> None:
    """Check what can be told about SegmentationFiles without opening a picture.

    Args:
        keys: the keys of ``data`` that are set, with their values.

    Raises:
        UserError: a key that must be said is not, or names no file.
    """
    for key, question in _MUST_BE_SAID.items():
        if key not in keys:
            raise UserError(f"data.{key} is not said: {question}")
    given = {key for key, value in keys.items() if value is not None}
    if ("pairs" in given) == bool(given & {"images", "masks"}) or len(
        given & {"images", "masks"}
    ) == 1:
        raise UserError(
            "data: say where the files are, either by data.images and data.masks (each a folder, "
            "or a pattern such as 'scans/*/image.png') or by data.pairs (a text file of lines "
            "IMAGE<tab>MASK)"
        )
    if len(given & {"val_list", "val_fraction"}) != 1:
        raise UserError(
            "data: say which images are for validation, either by data.val_fraction (0.1 takes a "
            "tenth) or by data.val_list (a text file of image names)"
        )
    _check_paths(keys)


_MUST_BE_SAID = {
    "zero_is": "has 0 in a mask a meaning of its own (class: the masks hold 0..K-1), or is it for "
    "pixels without a class (ignore: the masks hold 1..K)?\n`new seg --images ... --masks ...` "
    "looks at the masks and writes a config.",
    "ignore_value": "which other value in a mask is for pixels without a class? 255 is usual; "
    "null if none.",
}


def _check_paths(keys: Mapping[str, Any]) -> None:
    root = Path(str(keys.get("root") or "."))
    for key in ("images", "masks"):
        if keys.get(key) is not None and not files_at(root / str(keys[key])):
            place = root / str(keys[key])
            what = "the folder is empty" if place.is_dir() else "no such folder, or no file like it"
            raise UserError(f"data.{key}: {place}: {what}")
    for key in ("pairs", "val_list"):
        if keys.get(key) is not None and not (root / str(keys[key])).is_file():
            raise UserError(f"data.{key}: no file {root / str(keys[key])}")


def files_at(place: Path) -> list[Path]:
    """The files in a folder and below it, or those that a pattern names, sorted."""
    if place.is_dir():
        return sorted(path for path in place.rglob("*") if path.is_file())
    return sorted(Path(place.anchor).glob(str(place.relative_to(place.anchor))))


_COCO_FILES = {
    "train_images": "train2017",
    "train_annotations": "annotations/instances_train2017.json",
    "val_images": "val2017",
    "val_annotations": "annotations/instances_val2017.json",
}


def check_coco(keys: Mapping[str, Any]) -> None:
    """Check that the files of datamodules.COCO are there, without opening any.

    Args:
        keys: the keys of ``data`` that are set, with their values.

    Raises:
        UserError: a key that must be said is not, or names no file.
    """
    given = {key: str(value) for key, value in keys.items() if value is not None}
    root = Path(given.get("root", "."))
    named = _COCO_FILES | {key: given[key] for key in _COCO_FILES if key in given}
    if "annotations" in given or given.keys() & {"images", "val_fraction", "val_list"}:
        _check_undivided(given, named)
        named = {key: given[key] for key in ("images", "annotations", "val_list") if key in given}
    elif named == _COCO_FILES:
        check_root(root, LAYOUTS[COCO])
    for key, name in named.items():
        place = root / name
        if key.endswith("images"):
            if not _has_files(place):
                raise UserError(f"data.{key}: {place}: no such folder, or it is empty")
        elif not place.is_file():
            raise UserError(f"data.{key}: no file {place}")


def _check_undivided(given: Mapping[str, str], named: Mapping[str, str]) -> None:
    if "annotations" not in given or named != _COCO_FILES:
        raise UserError(
            "data: say where the files are, either by data.train_images, data.train_annotations, "
            "data.val_images and data.val_annotations, or, for a set with one annotation file, by "
            "data.images and data.annotations"
        )
    if len(given.keys() & {"val_list", "val_fraction"}) != 1:
        raise UserError(
            "data: say which images are for validation, either by data.val_fraction (0.1 takes a "
            "tenth) or by data.val_list (a text file of image ids)"
        )


CHECKS: dict[str, Callable[[Mapping[str, Any]], None]] = {FILES: check_files, COCO: check_coco}
"""Checks of the classes whose files have other places than a layout's; each takes all keys."""
