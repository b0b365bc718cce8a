"""The images of a split with their objects, read, checked and shown to `check-data`."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.checking import Finding
from datamodules.coco_annotations import CocoAnnotations, DetectionTargets, Outline
from datamodules.images import DataError, Flaw, Image8, read_image
from gmf_platform.errors import counted

__all__ = ["DetectionSplit", "InspectableDetections", "nothing_to_learn"]


@dataclass(frozen=True)
class DetectionSplit:
    """Some images of an annotation file, and the folder that they are in.

    Attributes:
        annotations: of all images of the file.
        folder: the file names begin here.
        images: which images of the file, by their place in it (N,).
    """

    annotations: CocoAnnotations
    folder: Path
    images: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    @property
    def sizes(self) -> NDArray[np.int32]:
        """Heights and widths (N, 2), as the annotation file has them."""
        return self.annotations.sizes[self.images]

    def image_id(self, index: int) -> int:
        """The id of an image in the annotation file."""
        return int(self.annotations.image_ids[self.images[index]])

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self.folder / self.annotations.file_name(int(self.images[index]))

    def image(self, index: int) -> Image8:
        """An image as the annotations mean it.

        COCO's annotations are of the pixels as they lie in the file, whatever EXIF says of its
        orientation. A file is turned only where just that gives the size in the annotations.

        Returns:
            uint8 (H, W, 3).

        Raises:
            DataError: the file cannot be read, or has another size than the annotations say.
        """
        path, size = self.path(index), self.annotations.size(int(self.images[index]))
        image = read_image(path, upright=False)
        if image.shape[:2] == size:
            return image
        turned = read_image(path)
        if turned.shape[:2] == size:
            return turned
        raise DataError(
            f"{path}: is {image.shape[1]} x {image.shape[0]} pixels, but {self._entry(index)} "
            f"says {size[1]} x {size[0]}",
            flaw=Flaw.ANNOTATION,
        )

    def objects(self, index: int) -> DetectionTargets:
        """The objects of an image, crowds included, without their masks."""
        return self.annotations.objects(int(self.images[index]))

    def outlines(self, index: int) -> list[Outline] | None:
        """The shapes of the objects of an image; None if the set is read without masks."""
        return self.annotations.outlines(int(self.images[index]))

    def targets(self, index: int) -> DetectionTargets:
        """The objects of an image, crowds included, with their masks in its own pixels."""
        return self.annotations.targets(int(self.images[index]))

    def absent(self) -> Iterator[DataError]:
        """Images that are listed but not there; each folder is listed once, no file is opened."""
        folders: dict[Path, set[str]] = {}
        for index in range(len(self)):
            path = self.path(index)
            if path.parent not in folders:
                found = os.listdir(path.parent) if path.parent.is_dir() else []  # noqa: PTH208
                folders[path.parent] = set(found)
            if path.name not in folders[path.parent]:
                yield self.absence(index)

    def absence(self, index: int) -> DataError:
        """That the file of an image is not there."""
        path, entry = self.path(index), self._entry(index)
        return DataError(f"{path}: there is no such file, but {entry} lists it")

    def shapeless(self) -> Iterator[DataError]:
        """Objects and crowds without a mask, which no masks can be scored against."""
        file = self.annotations
        for index, image in enumerate(self.images.tolist()):
            which = file.of_image.row(image)
            for annotation in which[~file.has_shape[which]].tolist():
                yield DataError(
                    f"annotation {file.annotation_ids[annotation]}, {self._entry(index)}, has no "
                    "mask ('segmentation') to score masks against: mend the json, or train a "
                    "detector of boxes only",
                    flaw=Flaw.ANNOTATION,
                )

    def _entry(self, index: int) -> str:
        return f"image {self.image_id(index)} of {self.annotations.path}"


class InspectableDetections:
    """A split for `check-data` (see datamodules.checking.Inspectable).

    Args:
        split: the images, those without objects included.
        tell: tell what is wrong with the annotation file; False if another split does.
        scored: masks are scored against the split's, so that each object needs one.
    """

    unit = "objects"

    def __init__(self, split: DetectionSplit, *, tell: bool = True, scored: bool = False) -> None:
        self.split, self.tell, self.scored = split, tell, scored

    def __len__(self) -> int:
        return len(self.split)

    def problems(self) -> list[DataError]:
        """What is wrong with the annotation file."""
        own = self.split.annotations.problems if self.tell else []
        return [*own, *self.split.shapeless()] if self.scored else own

    def notes(self) -> list[str]:
        """Boxes too thin, and objects without a mask."""
        return self.split.annotations.left_out() if self.tell else []

    def inspect(self, index: int) -> Finding:
        """Open an image."""
        targets = self.split.objects(index)
        labels, counts = np.unique(targets.labels[~targets.crowd], return_counts=True)
        found = dict(zip(labels.tolist(), counts.tolist(), strict=True))
        try:
            image = self.split.image(index)
        except DataError as error:
            is_there = self.split.path(index).exists()
            return Finding([error if is_there else self.split.absence(index)], counts=found)
        return Finding(size=(image.shape[0], image.shape[1]), counts=found)

    def judge(self, counts: Mapping[int, int]) -> list[DataError]:
        """No object at all."""
        if self.split.annotations.num_objects[self.split.images].any():
            return []
        return [DataError(nothing_to_learn(self.split.annotations), flaw=Flaw.BALANCE)]

    def name(self, index: int) -> str:
        """The image's file name."""
        return self.split.path(index).name

    def read(self, index: int) -> tuple[Image8, dict[str, Any]]:
        """The image (H, W, 3) and its objects, by the names of DetectionTargets."""
        return self.split.image(index), self.split.targets(index)._asdict()


def nothing_to_learn(annotations: CocoAnnotations) -> str:
    """Say that no object of an annotation file can be used, and why."""
    said = f"{annotations.path}: no image has an object that can be used"
    if annotations.with_masks and not annotations.crowd.all():
        return (
            f"{said}: none has a mask (its segmentation is empty). Set data.with_masks to false "
            "and take a head that finds boxes alone"
        )
    if annotations.dropped:
        return (
            f"{said}; {counted(annotations.dropped, 'box is', 'boxes are')} outside the image or "
            "thinner than a pixel. COCO boxes are [x, y, width, height] in pixels, not in "
            "fractions of the image"
        )
    return said
