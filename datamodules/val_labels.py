"""The classes of ImageNet's validation images where they lie in one folder, as they are shipped."""

import csv
import re
from pathlib import Path

from datamodules.images import DataError
from gmf_platform.errors import UserError

__all__ = ["KAGGLE", "OFFICIAL", "find_val_labels", "read_val_labels"]

OFFICIAL = "ILSVRC2012_validation_ground_truth.txt"
"""In the development kit: line i is the ILSVRC2012_ID, 1..1000, of ILSVRC2012_val_0000000i."""
KAGGLE = "LOC_val_solution.csv"
"""On Kaggle: ImageId, and a PredictionString that begins with the WordNet id."""

_DEVKIT = "ILSVRC2012_devkit_t12/data"


def find_val_labels(root: Path, folder: Path, given: str | None) -> Path:
    """The file that says the classes of a folder's images.

    Args:
        root: the data set's folder.
        folder: of the images.
        given: data.val_labels.

    Raises:
        UserError: there is none.
    """
    if given is not None:
        path = root / given
        if not path.is_file():
            raise UserError(f"data.val_labels: no file {path}")
        return path
    places = (root, folder, root / _DEVKIT, root.parent)
    found = (place / name for name in (KAGGLE, OFFICIAL) for place in places)
    path_or_none = next((path for path in found if path.is_file()), None)
    if path_or_none is None:
        raise UserError(
            f"{folder}: the images lie in one folder, and nothing says their classes. Do one of "
            f"these:\n"
            f"  - put {KAGGLE} of the Kaggle set into {root}\n"
            f"  - unpack ILSVRC2012_devkit_t12.tar.gz in {root}, which holds {OFFICIAL}\n"
            f"  - name with data.val_labels a text file of lines IMAGE CLASS\n"
            f"  - move the images into a folder for each class: {folder}/CLASS/IMAGE.JPEG"
        )
    return path_or_none


def read_val_labels(path: Path) -> dict[str, str]:
    """Which class an image is of.

    Args:
        path: Kaggle's ``LOC_val_solution.csv``; the official ground truth, with ``meta.mat`` in
            its folder or in ``data`` below; or lines IMAGE CLASS, separated by blanks, a tab or a
            comma.

    Returns:
        Stem of the image's file name -> name of its class (for ImageNet, the WordNet id).

    Raises:
        DataError: a line is not understood, or ``meta.mat`` is missing or damaged.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no text; lines IMAGE CLASS are expected") from error
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{path}: is empty; lines IMAGE CLASS are expected")
    if all(line.strip().isdecimal() for line in lines):
        names = _names_by_id(path)
        return {
            f"ILSVRC2012_val_{number:08d}": names.get(int(line), f"ILSVRC2012_ID {line}")
            for number, line in enumerate(lines, start=1)
        }
    if lines[0].startswith("ImageId,"):
        return dict(_solution(path, row) for row in csv.reader(lines[1:]))
    return dict(_two_words(path, number, line) for number, line in enumerate(lines, start=1))


def _solution(path: Path, row: list[str]) -> tuple[str, str]:
    if len(row) < 2 or not row[1].split():
        raise DataError(f"{path}: a line names no class: {','.join(row)[:80]!r}")
    return row[0], row[1].split()[0]


def _two_words(path: Path, number: int, line: str) -> tuple[str, str]:
    words = re.split(r"[\s,]+", line.strip())
    if len(words) != 2:
        raise DataError(f"{path}: line {number} is not IMAGE CLASS: {line.strip()[:80]!r}")
    return Path(words[0]).stem, words[1]


def _names_by_id(path: Path) -> dict[int, str]:
    """WordNet ids by ILSVRC2012_ID, which is another order than that of the sorted folders."""
    places = (path.parent / "meta.mat", path.parent / "data" / "meta.mat")
    meta = next((place for place in places if place.is_file()), None)
    if meta is None:
        raise DataError(
            f"{path}: holds ILSVRC2012 ids, and what they mean is said in meta.mat of the same "
            f"development kit, which is not beside it. Copy it to {path.parent}."
        )
    # albumentations needs scipy too
    from scipy.io import loadmat  # type: ignore[import-untyped, unused-ignore]

    try:
        synsets = loadmat(str(meta), squeeze_me=True)["synsets"]
        pairs = zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)
        return {int(number): str(wnid) for number, wnid in pairs}
    except Exception as error:  # a damaged file can fail in any way
        raise DataError(
            f"{meta}: cannot be read as that of the development kit ({error}). Unpack it again."
        ) from error
