"""ADE20K scene parsing, and any segmentation set in its layout.

``images/{training,validation}/NAME.jpg`` with ``annotations/{training,validation}/NAME.png``:
8-bit label pictures, 0 = other (ignored), 1..K = class, in the order of objectInfo150.txt.
"""

from importlib.resources import files
from pathlib import Path
from typing import Any

from datamodules.images import DataError
from datamodules.labels import IGNORE, LabelCode, check_class_names, read_class_names
from datamodules.layouts import LAYOUTS
from datamodules.pairs import Pairing, pair_folders
from datamodules.segmentation import SegmentationDataModule

__all__ = ["ADE20K"]


class ADE20K(SegmentationDataModule):
    """ADE20K (150 classes), or any set in its layout.

    Args:
        root: holds images/ and annotations/, each with training/ and validation/.
        classes: class names in label order, or a text file of them; None: the root's
            objectInfo150.txt, or else ADE20K's own 150.
        settings: see SegmentationDataModule.
    """

    layout = LAYOUTS["datamodules.ADE20K"]

    def __init__(
        self, root: str, *, classes: list[str] | str | None = None, **settings: Any
    ) -> None:
        super().__init__(root, **settings)
        self._class_names = self._find_class_names(classes)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of the labels 0..K-1."""
        return self._class_names

    @property
    def code(self) -> LabelCode:
        """1..K are the classes; 0 is ignored, and 255, which other sets ignore."""
        return LabelCode(range(1, len(self.class_names) + 1), (0, IGNORE))

    def _find_class_names(self, classes: list[str] | str | None) -> list[str]:
        own = self.root / "objectInfo150.txt"
        match classes:
            case list():
                names = list(classes)
            case str():
                names = read_class_names(Path(classes))
            case None if own.is_file():
                names = read_class_names(own)
            case None:
                names = read_class_names(Path(str(files("datamodules") / "ade20k_classes.txt")))
        check_class_names(names)
        return names

    def pairing(self, split: str) -> Pairing:
        """The images and masks of a split.

        Raises:
            DataError: the split has no folder of images, or none of masks.
        """
        images, masks = self.root / "images" / split, self.root / "annotations" / split
        for folder in (images, masks):
            if not folder.is_dir():
                there = ", ".join(sorted(p.name for p in folder.parent.iterdir() if p.is_dir()))
                raise DataError(
                    f"no folder {folder} for the split {split!r} (data.test_split); "
                    f"{folder.parent} has: {there}"
                )
        return pair_folders(images, masks)
