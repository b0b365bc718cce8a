"""Finding the images of a classification set: a folder a class, or one folder and a list."""

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from datamodules.images import DataError, Flaw
from datamodules.pairs import IMAGE_SUFFIXES

__all__ = [
    "Found",
    "class_folders",
    "find_in_class_folders",
    "find_listed",
    "images_below",
    "some_of",
]

_SCANNERS = 16
_SHOWN = 10


@dataclass(frozen=True)
class Found:
    """The images of a split.

    Attributes:
        entries: path relative to the root, with forward slashes, and label of each image.
        problems: classes without images, folders that are no class, images without a label.
    """

    entries: list[tuple[str, int]]
    problems: list[DataError] = field(default_factory=list)

    def whole(self) -> list[tuple[str, int]]:
        """The entries, if nothing is wrong with them.

        Raises:
            DataError: with up to ten problems.
        """
        if self.problems:
            said = [str(problem) for problem in self.problems[:_SHOWN]]
            more = len(self.problems) - len(said)
            said += [f"... and {more} more; check-data lists them all"] * (more > 0)
            raise DataError("\n".join(said), flaw=self.problems[0].flaw)
        return self.entries


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted as torchvision's ImageFolder sorts them."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def images_below(folder: Path) -> list[str]:
    """Image files in a folder and its sub-folders, relative to it, sorted; suffixes of any case."""
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = (name for name in folders if not name.startswith("."))
        base = "" if place == str(folder) else Path(place).relative_to(folder).as_posix() + "/"
        found += [base + name for name in names if _is_image(name)]
    return sorted(found)


def find_in_class_folders(
    root: Path, folder: Path, class_names: Sequence[str], *, allow_empty: bool
) -> Found:
    """The images of a folder that holds a folder of each class.

    Args:
        root: what paths are relative to.
        folder: the root, or below it.
        class_names: in label order; a folder of another name is a problem.
        allow_empty: a class without images is none.
    """
    with ThreadPoolExecutor(_SCANNERS) as pool:  # a shared file system takes its time to answer
        lists = list(pool.map(images_below, (folder / name for name in class_names)))
    base = "" if folder == root else folder.relative_to(root).as_posix() + "/"
    entries = [
        (f"{base}{name}/{image}", label)
        for label, (name, images) in enumerate(zip(class_names, lists, strict=True))
        for image in images
    ]
    problems = [] if allow_empty else _empty(folder, class_names, lists)
    known = set(class_names)
    problems += [
        DataError(
            f"{folder / name}: this folder is none of the {len(known)} classes "
            f"({some_of(class_names)}). Remove it, or name it in data.classes.",
            flaw=Flaw.CLASS,
        )
        for name in class_folders(folder)
        if name not in known
    ]
    return Found(entries, problems)


def find_listed(
    root: Path, folder: Path, classes: Mapping[str, str], class_names: Sequence[str]
) -> Found:
    """The images of a folder without class folders.

    Args:
        root: what paths are relative to.
        folder: below the root.
        classes: stem of each image's file name -> name of its class.
        class_names: in label order.
    """
    labels = {name: label for label, name in enumerate(class_names)}
    base = folder.relative_to(root).as_posix()
    entries, problems = [], []
    for name in images_below(folder):
        given = classes.get(Path(name).stem)
        if given in labels:
            entries.append((f"{base}/{name}", labels[given]))
        else:
            said = "is not in the list of labels" if given is None else f"is of no class: {given!r}"
            problems.append(DataError(f"{folder / name}: {said}", flaw=Flaw.CLASS))
    return Found(entries, problems)


def _empty(folder: Path, names: Sequence[str], lists: Iterable[Sequence[str]]) -> list[DataError]:
    empty = [name for name, images in zip(names, lists, strict=True) if not images]
    return [
        DataError(
            f"{folder / name}: {_nothing(folder / name)} of this class. Fetch them, or set "
            "data.allow_empty_classes to go on without.",
            flaw=Flaw.EMPTY_CLASS,
        )
        for name in empty
    ]


def _nothing(folder: Path) -> str:
    return "has no images" if folder.is_dir() else "there is no such folder, so no images"


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")  # noqa: PTH122 - a million Paths take seconds


def some_of(names: Sequence[str]) -> str:
    """The first three names, for errors."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
