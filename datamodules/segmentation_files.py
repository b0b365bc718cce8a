"""Your own segmentation set: images and masks wherever they lie, of whatever values."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

from datamodules.held_out import check_fraction, chosen_by_hash, listed_names, write_list
from datamodules.images import DataError
from datamodules.labels import LabelCode, check_class_names, read_class_names
from datamodules.layouts import check_files
from datamodules.pairs import Pairing, find_file_pairs, read_pair_list
from datamodules.segmentation import InspectablePairs, SegmentationDataModule
from gmf_platform.errors import UserError
from gmf_platform.ranges import UnitInterval

__all__ = ["RGB", "SegmentationFiles", "make_code"]

RGB: TypeAlias = tuple[int, int, int]
Palette: TypeAlias = list[RGB] | dict[str, RGB]


class SegmentationFiles(SegmentationDataModule):
    """Images and masks in two folders, by two patterns, or in a list of pairs.

    What 0 means must be said, and which value is ignored: a rule that fits one set silently
    empties another.

    Args:
        root: put in front of all paths below that are relative.
        zero_is: ``class``: masks hold 0..K-1; ``ignore``: 1..K, and 0 where there is no class.
        ignore_value: another value of pixels without a class; None: there is none. Classes
            count past it: with 2 ignored they are 0, 1, 3, 4, ...
        images: a folder, searched with its sub-folders, or a pattern such as ``*/image.jpg``.
        masks: likewise. Two folders are paired by path and stem, patterns by stem.
        mask_suffix: what mask names have behind their image's: ``_mask`` for a.jpg, a_mask.png.
        pairs: instead of both, a text file of lines IMAGE<tab>MASK.
        classes: class names in the order of their values, ignored ones left out, or a text file
            of them; None: the names in the palette.
        palette: for masks of colours (or of grey values with gaps): the colours, which then stand
            for the values 0, 1, 2, ... in their order; a mapping names them.
        val_fraction: this share of the images is for validation, chosen by a hash of their names,
            so that most stay where they are when images are added.
        split_seed: another number chooses others.
        val_list: instead, a text file of image names; the one that a run keeps will do.
        settings: see SegmentationDataModule.
    """

    def __init__(
        self,
        root: str = ".",
        *,
        zero_is: Literal["class", "ignore"],
        ignore_value: int | None,
        images: str | None = None,
        masks: str | None = None,
        mask_suffix: str = "",
        pairs: str | None = None,
        classes: list[str] | str | None = None,
        palette: list[tuple[int, int, int]] | dict[str, tuple[int, int, int]] | None = None,
        val_fraction: UnitInterval | None = None,
        split_seed: int = 0,
        val_list: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(root, **settings)
        self.images, self.masks, self.mask_suffix, self.pairs = images, masks, mask_suffix, pairs
        self.zero_is, self.ignore_value = zero_is, ignore_value
        self.val_fraction, self.split_seed, self.val_list = val_fraction, split_seed, val_list
        check_fraction(val_fraction)
        self._class_names = _class_names(classes, palette, _ignored(zero_is, ignore_value))
        self._code = make_code(
            len(self._class_names), zero_is=zero_is, ignore_value=ignore_value, palette=palette
        )

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of the labels 0..K-1."""
        return self._class_names

    @property
    def code(self) -> LabelCode:
        """What the masks' values mean."""
        return self._code

    def setup(self, stage: str) -> None:
        """Find the files; before training, look at masks and keep the validation list.

        Raises:
            UserError: files are missing, or the masks leave too little to learn from.
        """
        if stage == "predict":
            return
        check_files(vars(self))
        self._pairing.whole()
        super().setup(stage)
        if stage == "fit":
            self._keep_validation_list()

    def pairing(self, split: str) -> Pairing:
        """The images and masks of ``training`` or ``validation``.

        Raises:
            DataError: another split, or files that cannot be paired.
        """
        if split not in ("training", "validation"):
            raise DataError(
                f"data.test_split: there is no split {split!r}, only training and validation"
            )
        whole, chosen = self._pairing, self._validation_names
        wanted = split == "validation"
        pairs = [pair for pair in whole.pairs if (self._name(pair[0]) in chosen) == wanted]
        if not pairs:
            raise DataError(
                f"no images of {len(whole.pairs)} are left for {split}: change data.val_fraction "
                "or data.val_list"
            )
        # What has no partner belongs to no split: it is said once, with the training images.
        alone = ([], []) if wanted else (whole.images_alone, whole.masks_alone)
        return Pairing(pairs, *alone, whole.images, whole.masks)

    def inspectable(self, split: str) -> InspectablePairs:
        """The split for `check-data`, which refuses what training would."""
        limit = 0.5 if self.check_masks else 1.0
        return InspectablePairs(self.pairing(split), self.code, max_ignored=limit)

    @cached_property
    def _pairing(self) -> Pairing:
        if self.pairs is not None:
            return read_pair_list(self.root / self.pairs, self.root)
        images, masks = self.root / str(self.images), self.root / str(self.masks)
        return find_file_pairs(images, masks, mask_suffix=self.mask_suffix)

    @cached_property
    def _validation_names(self) -> set[str]:
        names = [self._name(image) for image, _ in self._pairing.pairs]
        if self.val_list is not None:
            path = self.root / self.val_list
            return listed_names(path, names, what="image with a mask")
        count = max(1, round(len(names) * (self.val_fraction or 0)))
        return chosen_by_hash(names, count, seed=self.split_seed)

    def _name(self, image: Path) -> str:
        """An image's name in lists: its path below the folder of images, or below the root."""
        folder = self.root / (self.images or "")
        for base in (folder, self.root):
            if image.is_relative_to(base):
                return image.relative_to(base).as_posix()
        return image.as_posix()

    def _keep_validation_list(self) -> None:
        """Write the names of the validation images into the run; it can serve as val_list."""
        trainer = self.trainer
        if trainer is not None and trainer.is_global_zero:
            write_list(self.run_folder, self._validation_names)


def _ignored(zero_is: str, ignore_value: int | None) -> set[int]:
    """The ignored values.

    Raises:
        UserError: 0 is said to be both, or the value is none that a mask can have.
    """
    if ignore_value is not None and not 0 <= ignore_value < 1 << 16:
        raise UserError(f"data.ignore_value: {ignore_value} is not in 0..65535; null if none")
    if zero_is == "class" and ignore_value == 0:
        raise UserError(
            "data.zero_is is class, but data.ignore_value is 0: which of them is meant?"
        )
    return ({0} if zero_is == "ignore" else set()) | (
        set() if ignore_value is None else {ignore_value}
    )


def make_code(
    num_classes: int,
    *,
    zero_is: Literal["class", "ignore"],
    ignore_value: int | None,
    palette: Palette | None = None,
) -> LabelCode:
    """What the values of masks mean; the arguments are those of SegmentationFiles.

    Raises:
        UserError: a colour that is none or comes twice, or a palette of another length.
    """
    ignored = _ignored(zero_is, ignore_value)
    if palette is None:
        values = (value for value in range(num_classes + len(ignored)) if value not in ignored)
        return LabelCode(
            [value for _, value in zip(range(num_classes), values, strict=False)], ignored
        )
    colours = [
        _packed(colour) for colour in (palette.values() if isinstance(palette, dict) else palette)
    ]
    if len(set(colours)) < len(colours):
        raise UserError("data.palette: a colour stands there twice")
    classes = [colour for value, colour in enumerate(colours) if value not in ignored]
    if len(classes) != num_classes:
        raise UserError(
            f"data.palette: {len(classes)} colours are left beside the ignored ones, but there are "
            f"{num_classes} names in data.classes"
        )
    return LabelCode(classes, set(colours) - set(classes), is_colour=True)


def _packed(colour: Sequence[int]) -> int:
    if len(colour) != 3 or not all(0 <= channel <= 255 for channel in colour):
        raise UserError(f"data.palette: {list(colour)} is no colour [R, G, B] of 0..255")
    red, green, blue = colour
    return red << 16 | green << 8 | blue


def _class_names(
    classes: list[str] | str | None, palette: Palette | None, ignored: set[int]
) -> list[str]:
    match classes:
        case list():
            names = list(classes)
        case str():
            names = read_class_names(Path(classes))
        case None if isinstance(palette, Mapping):
            names = [name for value, name in enumerate(palette) if value not in ignored]
        case None:
            raise UserError(
                "data.classes is not said: list the names in the order of their values, ignored "
                "ones left out, or name a text file with one a line"
            )
    check_class_names(names)
    return names
