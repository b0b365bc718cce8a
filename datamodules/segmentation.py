"""What all segmentation sets share: pairs of image and mask, transforms, batches, inspection."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import BaseDataModule
from datamodules.checking import Finding
from datamodules.histogram import (
    evenly_spaced,
    histogram_lines,
    value_histogram,
    what_is_wrong,
)
from datamodules.images import (
    DataError,
    Flaw,
    Image8,
    ImageSource,
    image_size,
    name_of,
    read_image,
    read_source,
)
from datamodules.labels import IGNORE, LabelCode
from datamodules.pairs import Pairing
from datamodules.transforms import AtCommonSize, Augmentation, eval_transform, train_transform
from gmf_platform.distributed.order import SampleKey
from gmf_platform.errors import UserError
from gmf_platform.ranges import NonNegativeInt, PositiveFloat, PositiveInt, UnitInterval

__all__ = [
    "ImageFiles",
    "InspectablePairs",
    "SegmentationDataModule",
    "SegmentationDataset",
    "pad_images",
    "read_pair",
]


def read_pair(image_path: Path, mask_path: Path, code: LabelCode) -> tuple[Image8, Image8]:
    """An image uint8 (H, W, 3) and its labels uint8 (H, W), 0..K-1 and IGNORE.

    Raises:
        DataError: a file is broken, the sizes differ, or a value means nothing.
    """
    image = read_image(image_path)
    labels = code.labels(code.read(mask_path), mask_path)
    _check_size(image, labels, image_path, mask_path)
    return image, labels


def _check_size(image: np.ndarray, mask: np.ndarray, image_path: Path, mask_path: Path) -> None:
    if image.shape[:2] != mask.shape:
        raise DataError(
            f"{mask_path}: is {mask.shape[1]} x {mask.shape[0]} pixels, its image "
            f"{image_path.name} is {image.shape[1]} x {image.shape[0]}",
            flaw=Flaw.SIZE,
        )


class SegmentationDataset(Dataset[dict[str, Any]]):
    """Images with label pictures.

    Args:
        pairs: image and mask paths.
        transform: of image and mask in training, of the image alone in evaluation.
        code: what the masks' values mean.
        seed: None for evaluation, whose masks keep their original size.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Path, Path]],
        transform: Augmentation,
        *,
        code: LabelCode,
        seed: int | None,
    ) -> None:
        self.pairs, self.transform = pairs, transform
        self.code, self.seed = code, seed

    def __len__(self) -> int:
        return len(self.pairs)

    def path(self, index: int) -> str:
        """The image's file."""
        return str(self.pairs[index][0])

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """A sample: image uint8 (H, W, 3), mask uint8 (H, W), id, size and original_size."""
        image_path, mask_path = self.pairs[key.sample]
        image, mask = read_pair(image_path, mask_path, self.code)
        sample = {"id": image_path.stem, "original_size": image.shape[:2]}
        if self.seed is None:
            return sample | self.transform(image=image, seed=(0,)) | {"mask": mask}
        return sample | self.transform(image=image, mask=mask, seed=(self.seed, *key))


class ImageFiles(Dataset[dict[str, Any]]):
    """Images without labels, for prediction; the id of a sample is its file's path.

    Args:
        sources: image files or images.
        transform: of evaluation.
    """

    def __init__(self, sources: Sequence[ImageSource], transform: Augmentation) -> None:
        self.sources, self.transform = sources, transform

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """A sample: image uint8 (H, W, 3), id, size and original_size."""
        source = self.sources[key.sample]
        image = read_source(source)
        about = {"id": name_of(source), "original_size": image.shape[:2]}
        return about | self.transform(image=image, seed=(0,))


class InspectablePairs:
    """Images with label pictures, for `check-data` (see datamodules.checking.Inspectable).

    Args:
        pairing: images and masks, those without a partner included.
        code: what the masks' values mean.
        max_ignored: the largest share of ignored pixels that is no mistake.
    """

    unit = "pixels"

    def __init__(self, pairing: Pairing, code: LabelCode, *, max_ignored: float = 1.0) -> None:
        self.pairing, self.code, self.max_ignored = pairing, code, max_ignored

    def __len__(self) -> int:
        return len(self.pairing.pairs)

    def problems(self) -> list[DataError]:
        """Images without a mask, and masks without an image."""
        return self.pairing.problems()

    def notes(self) -> list[str]:
        """Nothing is left out."""
        return []

    def inspect(self, index: int) -> Finding:
        """Open an image and its mask; each may have its own problems."""
        image_path, mask_path = self.pairing.pairs[index]
        image = labels = None
        problems = []
        try:
            image = read_image(image_path)
        except DataError as error:
            problems.append(error)
        try:
            values = self.code.read(mask_path)
            if image is not None:
                _check_size(image, values, image_path, mask_path)
            labels = self.code.labels(values, mask_path)
        except DataError as error:
            problems.append(error)
        counts = [] if labels is None else np.bincount(labels.ravel()).tolist()
        return Finding(
            problems,
            size=None if image is None else (image.shape[0], image.shape[1]),
            counts={label: count for label, count in enumerate(counts) if count},
        )

    def judge(self, counts: Mapping[int, int]) -> list[DataError]:
        """Fewer than two classes, or too many ignored pixels."""
        total, ignored = sum(counts.values()), counts.get(IGNORE, 0)
        found = [label for label, count in counts.items() if count and label != IGNORE]
        said = []
        if total and len(found) < 2:
            said.append(f"{len(found)} of {len(self.code.classes)} classes occur in all masks")
        if total and ignored > self.max_ignored * total:
            said.append(f"{ignored / total:.0%} of all pixels are ignored")
        return [DataError(line, flaw=Flaw.BALANCE) for line in said]

    def name(self, index: int) -> str:
        """The image's file name."""
        return self.pairing.pairs[index][0].name

    def read(self, index: int) -> tuple[Image8, Image8]:
        """The image (H, W, 3) and its labels (H, W)."""
        return read_pair(*self.pairing.pairs[index], self.code)


class SegmentationDataModule(BaseDataModule):
    """Base of segmentation sets; a subclass says which files there are and what they mean.

    Args:
        root: see BaseDataModule.
        crop_size: side of the training crops, pixels.
        scale: the resize bound (long side, short side) in pixels; in training times a factor
            from ``ratio_range``.
        ratio_range: smallest and largest factor of the training resize.
        max_category_ratio: a crop is drawn again (up to 10 times) while one class has a larger
            share of its labelled pixels.
        eval_ratios: evaluation images come resized by each of these factors of ``scale`` as
            well, for model.inference to combine; None: at ``scale`` alone.
        check_masks: so many masks, evenly spaced, are looked at before training; 0: none.
        global_batch_size: see BaseDataModule.
        batching: see BaseDataModule.
    """

    smaller_training = "smaller crops: --data.crop_size"
    smaller_evaluation = "smaller images: --data.scale, or windows: --config test/sliding"

    def __init__(
        self,
        root: str,
        *,
        crop_size: PositiveInt = 512,
        scale: tuple[PositiveInt, PositiveInt] = (2048, 512),
        ratio_range: tuple[PositiveFloat, PositiveFloat] = (0.5, 2.0),
        max_category_ratio: UnitInterval = 0.75,
        eval_ratios: list[PositiveFloat] | None = None,
        check_masks: NonNegativeInt = 200,
        global_batch_size: PositiveInt = 16,
        **batching: Any,
    ) -> None:
        super().__init__(root, global_batch_size=global_batch_size, **batching)
        self.crop_size, self.scale, self.ratio_range = crop_size, scale, ratio_range
        self.max_category_ratio, self.eval_ratios = max_category_ratio, eval_ratios
        self.check_masks = check_masks

    @property
    def training_size(self) -> tuple[int, int]:
        """Of the crops."""
        return self.crop_size, self.crop_size

    @property
    @abstractmethod
    def code(self) -> LabelCode:
        """What the masks' values mean."""

    @abstractmethod
    def pairing(self, split: str) -> Pairing:
        """The images and masks of a split.

        Raises:
            DataError: there is no such split.
        """

    def setup(self, stage: str) -> None:
        """Build the data sets; before training, look at masks.

        Raises:
            UserError: files are missing, or the masks leave too little to learn from.
        """
        super().setup(stage)
        if stage == "fit" and self.check_masks:
            self._look_at_masks()

    def _look_at_masks(self) -> None:
        """Refuse masks that leave too little to learn from.

        Raises:
            UserError: with the histogram of their values, and what to change.
        """
        all_masks = [mask for _, mask in self.pairing("training").pairs]
        looked_at = evenly_spaced(all_masks, self.check_masks)
        histogram = value_histogram(self.code.read(path) for path in looked_at)
        wrong = what_is_wrong(histogram, self.code)
        if wrong:
            lines = histogram_lines(histogram, self.code, self.class_names)
            raise UserError(
                f"data: {len(looked_at)} of {len(all_masks)} training masks were looked at, and "
                "they do not fit the config. Their values, share of the pixels, and meaning:\n"
                + "\n".join([*lines, *(f"- {line}" for line in wrong)])
            )

    def dataset(self, split: str, *, training: bool) -> SegmentationDataset:
        """The pairs of a split, with the training or the evaluation transform.

        Raises:
            DataError: there is no such split, or images of it have no mask.
        """
        pairs = self.pairing(split).whole()
        transform = self._train_transform() if training else self._eval_transform()
        seed = self.seed if training else None
        return SegmentationDataset(pairs, transform, code=self.code, seed=seed)

    def predict_dataset(self, sources: Sequence[ImageSource]) -> ImageFiles:
        """Images with the evaluation transform."""
        return ImageFiles(sources, self._eval_transform())

    def resizing(self) -> dict[str, Any]:
        """The two sides."""
        return {"short": min(self.scale), "long": max(self.scale)}

    def inspectable(self, split: str) -> InspectablePairs:
        """The split for `check-data`."""
        return InspectablePairs(self.pairing(split), self.code)

    def _eval_transform(self) -> Augmentation:
        if self.common_size is not None:
            return AtCommonSize(self.common_size)
        return eval_transform(scale=self.scale, ratios=self.eval_ratios)

    def _train_transform(self) -> Augmentation:
        return train_transform(
            crop=self.crop_size,
            scale=self.scale,
            ratio_range=self.ratio_range,
            max_category_ratio=self.max_category_ratio,
        )

    def image_names(self, split: str) -> list[str]:
        """See BaseDataModule."""
        return [image.stem for image, _ in self.pairing(split).whole()]

    def eval_groups(self, dataset: Dataset[Any]) -> list[list[int]]:
        """Images of like shape share a batch, so that little is padded."""
        assert isinstance(dataset, SegmentationDataset)
        if self.eval_batch_size == 1 or self.common_size is not None:
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
