"""ADE20K scene parsing, and any segmentation set in its layout.

``images/{training,validation}/NAME.jpg`` with ``annotations/{training,validation}/NAME.png``:
8-bit label pictures, 0 = other (ignored), 1..K = class, in the order of objectInfo150.txt.
"""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import BaseDataModule
from datamodules.images import DataError, image_size, read_image, read_mask
from datamodules.layouts import LAYOUTS
from datamodules.transforms import Augmentation, eval_transform, train_transform
from gmf_platform.distributed.order import SampleKey
from gmf_platform.errors import UserError

__all__ = ["ADE20K", "IGNORE", "ImageFiles", "SegmentationFolder", "find_pairs", "read_class_names"]

IGNORE = 255  # the label of pixels without a class, as everywhere in the field
_IMAGES = {".jpg", ".jpeg", ".png"}


def read_class_names(path: Path) -> list[str]:
    """Class names from a text file: objectInfo150.txt's columns, or one name a line.

    A line may begin with the class's number, as in ``3 sky``. Of several names of a class
    ("building, edifice") the first is taken.

    Raises:
        UserError: the file is missing or empty.
    """
    if not path.is_file():
        raise UserError(f"data.classes: no file {path}; give a text file with one name a line")
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    if lines and lines[0].split("\t")[0] == "Idx":
        names = [line.split("\t")[-1] for line in lines[1:]]
    else:
        names = [_without_number(line.strip()) for line in lines]
    if not names:
        raise UserError(f"data.classes: {path} is empty; one class name a line is expected")
    return [name.split(",")[0].strip() for name in names]


def _without_number(line: str) -> str:
    number, _, rest = line.partition(" ")
    return rest.strip() if number.isdigit() and rest else line


def find_pairs(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    """Image and mask files of equal stem, in the order of their names.

    Raises:
        DataError: images without a mask, naming the first.
    """
    found = sorted(path for path in images.iterdir() if path.suffix.lower() in _IMAGES)
    pairs = [(path, masks / f"{path.stem}.png") for path in found]
    partners = {path.name for path in masks.iterdir()}
    alone = [path for path, mask in pairs if mask.name not in partners]
    if alone:
        raise DataError(
            f"{len(alone)} of {len(pairs)} images under {images} have no mask under {masks}: "
            f"the first is {alone[0].name}, whose mask would be {alone[0].stem}.png"
        )
    if not pairs:
        raise DataError(f"no .jpg or .png images under {images}")
    return pairs


class SegmentationFolder(Dataset[dict[str, Any]]):
    """Images with label pictures.

    Args:
        pairs: image and mask paths.
        transform: of image and mask in training, of the image alone in evaluation.
        num_classes: labels 1..num_classes are classes; 0 is ignored.
        seed: None for evaluation, whose masks keep their original size.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Path, Path]],
        transform: Augmentation,
        *,
        num_classes: int,
        seed: int | None,
    ) -> None:
        self.pairs, self.transform = pairs, transform
        self.num_classes, self.seed = num_classes, seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """A sample: image uint8 (H, W, 3), mask uint8 (H, W), id, size and original_size."""
        image_path, mask_path = self.pairs[key.sample]
        image, mask = read_image(image_path), self._read_labels(mask_path)
        if image.shape[:2] != mask.shape:
            raise DataError(
                f"{mask_path}: is {mask.shape[1]} x {mask.shape[0]} pixels, its image "
                f"{image_path.name} is {image.shape[1]} x {image.shape[0]}"
            )
        sample = {"id": image_path.stem, "original_size": image.shape[:2]}
        if self.seed is None:
            return sample | self.transform(image=image, seed=(0,)) | {"mask": mask}
        return sample | self.transform(image=image, mask=mask, seed=(self.seed, *key))

    def _read_labels(self, path: Path) -> np.ndarray:
        """Labels 0..K-1 and IGNORE: the file's 0 wraps round to 255, its 255 is ignored too."""
        mask = read_mask(path)
        labels = mask.astype(np.uint8) - np.uint8(1)
        wrong = mask[(mask > self.num_classes) & (mask != IGNORE)]
        if wrong.size:
            raise DataError(
                f"{path}: has label {wrong.max()}, but there are {self.num_classes} classes "
                f"(labels 1..{self.num_classes}, 0 and 255 = ignored); data.classes names them"
            )
        labels[mask == IGNORE] = IGNORE
        return labels


class ImageFiles(Dataset[dict[str, Any]]):
    """Image files without labels, for prediction; the id of a sample is its path.

    Args:
        paths: image files.
        transform: of evaluation.
    """

    def __init__(self, paths: Sequence[Path], transform: Augmentation) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """A sample: image uint8 (H, W, 3), id, size and original_size."""
        image = read_image(self.paths[key.sample])
        about = {"id": str(self.paths[key.sample]), "original_size": image.shape[:2]}
        return about | self.transform(image=image, seed=(0,))


class ADE20K(BaseDataModule):
    """ADE20K (150 classes), or any set in its layout.

    Args:
        root: holds images/ and annotations/, each with training/ and validation/.
        classes: class names in label order, or a text file of them; None: the root's
            objectInfo150.txt, or else ADE20K's own 150.
        crop_size: side of the training crops, pixels.
        scale: the resize bound (long side, short side) in pixels; in training times a factor
            from ``ratio_range``.
        ratio_range: smallest and largest factor of the training resize.
        max_category_ratio: a crop is drawn again (up to 10 times) while one class has a larger
            share of its labelled pixels.
        eval_ratios: evaluation images come resized by each of these factors of ``scale`` as
            well, for model.inference to combine; None: at ``scale`` alone.
        global_batch_size: see BaseDataModule, as all below.
    """

    layout = LAYOUTS["datamodules.ADE20K"]

    def __init__(
        self,
        root: str,
        *,
        classes: list[str] | str | None = None,
        crop_size: int = 512,
        scale: tuple[int, int] = (2048, 512),
        ratio_range: tuple[float, float] = (0.5, 2.0),
        max_category_ratio: float = 0.75,
        eval_ratios: list[float] | None = None,
        global_batch_size: int = 16,
        per_device_batch_size: int | None = None,
        eval_batch_size: int = 1,
        test_split: str = "validation",
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            root,
            global_batch_size=global_batch_size,
            per_device_batch_size=per_device_batch_size,
            eval_batch_size=eval_batch_size,
            test_split=test_split,
            num_workers=num_workers,
            seed=seed,
        )
        self.crop_size, self.scale, self.ratio_range = crop_size, scale, ratio_range
        self.max_category_ratio, self.eval_ratios = max_category_ratio, eval_ratios
        self._class_names = self._find_class_names(classes)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of the labels 0..K-1."""
        return self._class_names

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
        if not 2 <= len(names) < IGNORE:
            raise UserError(
                f"data.classes: {len(names)} classes; 2 to {IGNORE - 1} are possible beside the "
                f"ignored labels 0 and {IGNORE} of 8-bit masks"
            )
        return names

    def dataset(self, split: str, *, training: bool) -> SegmentationFolder:
        """The pairs of a split, with the training or the evaluation transform.

        Raises:
            DataError: the split has no folder of images or none of masks, or see `find_pairs`.
        """
        images, masks = self.root / "images" / split, self.root / "annotations" / split
        for folder in (images, masks):
            if not folder.is_dir():
                there = ", ".join(sorted(p.name for p in folder.parent.iterdir() if p.is_dir()))
                raise DataError(
                    f"no folder {folder} for the split {split!r} (data.test_split); "
                    f"{folder.parent} has: {there}"
                )
        pairs = find_pairs(images, masks)
        transform = self._train_transform() if training else self._eval_transform()
        seed = self.seed if training else None
        return SegmentationFolder(pairs, transform, num_classes=len(self.class_names), seed=seed)

    def _eval_transform(self) -> Augmentation:
        return eval_transform(scale=self.scale, ratios=self.eval_ratios)

    def _train_transform(self) -> Augmentation:
        return train_transform(
            crop=self.crop_size,
            scale=self.scale,
            ratio_range=self.ratio_range,
            max_category_ratio=self.max_category_ratio,
        )

    def predict_dataset(self, paths: Sequence[Path]) -> "ImageFiles":
        """Image files with the evaluation transform."""
        return ImageFiles(paths, self._eval_transform())

    def eval_groups(self, dataset: Dataset[Any]) -> list[list[int]]:
        """Images of like shape share a batch, so that little is padded."""
        assert isinstance(dataset, SegmentationFolder)
        if self.eval_batch_size == 1:
            return super().eval_groups(dataset)
        sizes = [image_size(image) for image, _ in dataset.pairs]
        order = sorted(range(len(sizes)), key=lambda i: (sizes[i][0] / sizes[i][1], i))
        step = self.eval_batch_size
        return [order[i : i + step] for i in range(0, len(order), step)]

    def collate(self, samples: list[dict[str, Any]], *, training: bool) -> dict[str, Any]:
        """Join samples; images are padded right and below to the largest of the batch.

        Training masks are one tensor (B, H, W); evaluation masks, which keep their original
        sizes, a list; image files have none. With ``eval_ratios``, evaluation batches have
        ``scaled``: images and sizes for each ratio.
        """
        batch: dict[str, Any] = {
            **_images_and_sizes(samples),
            "original_sizes": torch.tensor([sample["original_size"] for sample in samples]),
            "ids": [sample["id"] for sample in samples],
        }
        if "mask" in samples[0]:
            masks = [torch.from_numpy(sample["mask"]) for sample in samples]
            batch["masks"] = torch.stack(masks) if training else masks
        if "scaled" in samples[0]:
            by_ratio = zip(*(sample["scaled"] for sample in samples), strict=True)
            batch["scaled"] = [_images_and_sizes(versions) for versions in by_ratio]
        return batch


def _images_and_sizes(samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    return {
        "images": pad_images([sample["image"] for sample in samples]),
        "sizes": torch.tensor([sample["size"] for sample in samples]),
    }


def pad_images(images: Sequence[np.ndarray]) -> Tensor:
    """Images (H_i, W_i, 3) to one uint8 batch (B, 3, H, W) in channels_last memory."""
    height = max(image.shape[0] for image in images)
    width = max(image.shape[1] for image in images)
    batch = torch.zeros(len(images), height, width, 3, dtype=torch.uint8)
    for i, image in enumerate(images):
        batch[i, : image.shape[0], : image.shape[1]] = torch.from_numpy(image)
    return batch.permute(0, 3, 1, 2)
