"""COCO detection and instance segmentation, and any set with annotation files in its form."""

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.coco_annotations import CocoAnnotations
from datamodules.coco_json import read_coco
from datamodules.detection import DetectionDataModule
from datamodules.detection_split import DetectionSplit, InspectableDetections
from datamodules.held_out import check_fraction, chosen_by_hash, listed_names, write_list
from datamodules.images import DataError
from datamodules.labels import read_class_names
from datamodules.layouts import check_coco
from gmf_platform.errors import counted
from gmf_platform.ranges import UnitInterval

__all__ = ["COCO"]

log = logging.getLogger("gmf_platform.coco")


class COCO(DetectionDataModule):
    """COCO 2017, or your own images with annotations in COCO's form.

    Args:
        root: put in front of all paths below that are relative.
        train_images: folder of the training images.
        train_annotations: their annotation file.
        val_images: folder of the validation images.
        val_annotations: their annotation file.
        images: instead of these four, the folder of all images.
        annotations: and their one annotation file.
        val_fraction: this share of them is for validation, chosen by a hash of the image ids, so
            that most stay where they are when images are added.
        split_seed: another number chooses others.
        val_list: instead, a text file of image ids; the one that a run keeps will do.
        classes: class names in label order, or a text file of them; None: all categories of the
            annotation file, sorted by id.
        settings: see DetectionDataModule.
    """

    def __init__(
        self,
        root: str,
        *,
        train_images: str = "train2017",
        train_annotations: str = "annotations/instances_train2017.json",
        val_images: str = "val2017",
        val_annotations: str = "annotations/instances_val2017.json",
        images: str | None = None,
        annotations: str | None = None,
        val_fraction: UnitInterval | None = None,
        split_seed: int = 0,
        val_list: str | None = None,
        classes: list[str] | str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(root, **settings)
        check_fraction(val_fraction)
        self.files = {
            "training": (train_images, train_annotations),
            "validation": (val_images, val_annotations),
        }
        self.whole = None if annotations is None else (images or ".", annotations)
        self.val_fraction, self.split_seed, self.val_list = val_fraction, split_seed, val_list
        self._keys = {
            "root": root,
            "train_images": train_images,
            "train_annotations": train_annotations,
            "val_images": val_images,
            "val_annotations": val_annotations,
            "images": images,
            "annotations": annotations,
            "val_fraction": val_fraction,
            "val_list": val_list,
        }
        self._classes = read_class_names(Path(classes)) if isinstance(classes, str) else classes
        self._read: dict[str, CocoAnnotations] = {}

    @cached_property
    def class_names(self) -> Sequence[str]:
        """Names of the classes, in the order of the labels 0..K-1.

        Of official sets both annotation files list all categories: the smaller one is asked, and
        the other one must agree.
        """
        return self._classes or self._annotations(self._names_in).class_names

    @property
    def _names_in(self) -> str:
        """The annotation file that names the classes where the config does not."""
        _, file = self.whole or self.files["validation"]
        return file

    def setup(self, stage: str) -> None:
        """Read the annotation files; before training, keep the list of validation images.

        Raises:
            UserError: files are missing, or anything is wrong with the annotations.
        """
        if stage == "predict":
            return
        check_coco(self._keys)
        super().setup(stage)
        trainer = self.trainer
        if stage == "fit" and self.whole and trainer is not None and trainer.is_global_zero:
            write_list(self.run_folder, self._validation_ids)

    def images(self, split: str) -> DetectionSplit:
        """All images of a split.

        Args:
            split: ``training`` or ``validation``; of a divided set also another NAME, for NAME/
                and annotations/instances_NAME.json.

        Raises:
            DataError: there is no such split, or its annotation file cannot be read.
        """
        if self.whole is None:
            own = (split, f"annotations/instances_{split}.json")
            folder, file = self.files.get(split, own)
            annotations = self._annotations(file)
            return DetectionSplit(annotations, self.root / folder, np.arange(len(annotations)))
        if split not in self.files:
            raise DataError(
                f"data.test_split: there is no split {split!r}, only training and validation"
            )
        folder, file = self.whole
        annotations = self._annotations(file)
        chosen = [int(name) for name in self._validation_ids]
        held_out = np.isin(annotations.image_ids, chosen)
        wanted = np.flatnonzero(held_out if split == "validation" else ~held_out)
        if not len(wanted):
            raise DataError(
                f"none of {counted(len(annotations), 'image', 'images')} is left for {split}: "
                "change data.val_fraction or data.val_list"
            )
        return DetectionSplit(annotations, self.root / folder, wanted)

    def inspectable(self, split: str) -> InspectableDetections:
        """The split for `check-data`; what is wrong with one file for both is said once."""
        tell = self.whole is None or split == "training"
        scored = self.with_masks and split != "training"
        return InspectableDetections(self.images(split), tell=tell, scored=scored)

    @cached_property
    def _validation_ids(self) -> set[str]:
        assert self.whole is not None
        ids = [str(number) for number in self._annotations(self.whole[1]).image_ids.tolist()]
        if self.val_list is not None:
            return listed_names(self.root / self.val_list, ids, what="image")
        count = max(1, round(len(ids) * (self.val_fraction or 0)))
        return chosen_by_hash(ids, count, seed=self.split_seed)

    def _annotations(self, file: str) -> CocoAnnotations:
        """The content of an annotation file, read once."""
        if file not in self._read:
            names = self.root / self._names_in
            own = self._classes is not None or file == self._names_in
            read = read_coco(
                self.root / file,
                classes=self._classes if own else self.class_names,
                named_in=None if own else names,
                with_masks=self.with_masks,
            )
            for line in read.left_out():
                log.info("%s", line)
            self._read[file] = read
        return self._read[file]
