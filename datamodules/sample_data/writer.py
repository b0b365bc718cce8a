"""Write a sample: once, whole or not at all, and the same for the same arguments."""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal, TypedDict

from datamodules.sample_data.layouts import write_ade20k, write_coco, write_imagenet
from datamodules.sample_data.scenes import Scene, Split, scenes
from gmf_platform.errors import UserError

__all__ = ["Layout", "write_sample"]

Layout = Literal["ade20k", "coco", "imagenet"]

_RECORD: Final = "sample.json"
_VERSION: Final = 1  # raise it when the same arguments start to give other files
_LEAST_SIZE: Final = 32  # below, the textures of the objects are finer than the pixels


class _Record(TypedDict):
    """What a sample was made from; kept beside its files."""

    layout: Layout
    train: int
    val: int
    size: int
    seed: int
    version: int


def write_sample(
    layout: Layout,
    directory: Path,
    *,
    train: int,
    val: int,
    size: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Draw a sample data set in the layout of an official one.

    Scene i of a split depends on (seed, split, i, size) alone, so the three layouts show the same
    pictures; ImageNet's, where each picture needs a class, leaves out the scenes without an object
    and goes on to later ones. The folder appears at once when all is written. Where it already
    holds this very sample, nothing is done.

    Args:
        layout: Which data set's folders and files to write.
        directory: Folder to make; it may exist if it is empty.
        train: Number of training images, at least 1.
        val: Number of validation images, at least 1.
        size: Side of the square images in pixels, at least 32.
        seed: Seed of the pictures, at least 0.
        progress: Called after each image with the number drawn and the number in all.

    Raises:
        UserError: An argument is out of range, or the folder holds anything else.
    """
    _check_range(train=train, val=val, size=size, seed=seed)
    directory = directory.resolve()
    record = _Record(layout=layout, train=train, val=val, size=size, seed=seed, version=_VERSION)
    if _is_written(directory, record):
        return
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that the rename stays within one file system.
        with TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as scratch:
            root = Path(scratch) / "sample"
            root.mkdir()
            _fill(root, record, progress or (lambda done, total: None))
            if directory.exists():
                directory.rmdir()
            root.rename(directory)
    except OSError as error:
        raise UserError(f"cannot write the sample to {directory}: {error}") from error


def _fill(root: Path, record: _Record, progress: Callable[[int, int], None]) -> None:
    """Write the data set and its record into an empty folder."""
    layout, size, seed = record["layout"], record["size"], record["seed"]
    done, total = 0, record["train"] + record["val"]

    def draw(split: Split) -> Iterator[Scene]:
        nonlocal done
        drawn = scenes(seed=seed, split=split, size=size)
        if layout == "imagenet":
            drawn = (scene for scene in drawn if scene.main_shape is not None)
        for scene in islice(drawn, record[split]):
            yield scene
            done += 1
            progress(done, total)

    match layout:
        case "ade20k":
            write_ade20k(root, draw("train"), draw("val"))
        case "coco":
            write_coco(root, draw("train"), draw("val"))
        case "imagenet":
            write_imagenet(root, draw("train"), draw("val"))
    (root / _RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _check_range(*, train: int, val: int, size: int, seed: int) -> None:
    for name, value, least in (
        ("train", train, 1),
        ("val", val, 1),
        ("size", size, _LEAST_SIZE),
        ("seed", seed, 0),
    ):
        if value < least:
            raise UserError(f"sample data: {name} is {value}; give {least} or more")


def _is_written(directory: Path, record: _Record) -> bool:
    """Say whether the sample is there, whole; refuse a folder that holds anything else."""
    if not directory.exists():
        return False
    if not directory.is_dir():
        raise UserError(f"{directory} is a file: name a folder for the sample data")
    if not any(directory.iterdir()):
        return False
    found = _read_record(directory / _RECORD)
    if found is None:
        raise UserError(
            f"{directory} holds other files: name a new or an empty folder for the sample data"
        )
    if found != record:
        raise UserError(
            f"{directory} holds another sample ({found}, asked for {record}): "
            "delete it or name another folder"
        )
    images = sum(path.suffix in {".jpg", ".JPEG"} for path in directory.rglob("*"))
    if images != record["train"] + record["val"]:
        raise UserError(
            f"the sample in {directory} has {images} images instead of "
            f"{record['train'] + record['val']}: delete it and draw it again"
        )
    return True


def _read_record(path: Path) -> object:
    """Read the record of a sample; None where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
