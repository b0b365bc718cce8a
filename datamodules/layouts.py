"""What each data set's folder must hold, checked before any slow import."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmf_platform.errors import UserError

__all__ = ["FILES", "LAYOUTS", "Layout", "check_files", "check_root", "files_at"]

FILES = "datamodules.SegmentationFiles"
"""The class whose files lie anywhere; `check_files` is for it what `check_root` is for layouts."""


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
}


def check_root(root: Path, layout: Layout) -> None:
    """Check that a data set's folder has its sub-folders.

    Raises:
        UserError: naming what is missing, where to get the set, and how to make a sample of it.
    """
    missing = [name for name in layout.folders if not _has_files(root / name)]
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
