"""What each data set's folder must hold, checked before any slow import."""

from dataclasses import dataclass
from pathlib import Path

from gmf_platform.errors import UserError

__all__ = ["LAYOUTS", "Layout", "check_root"]


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
