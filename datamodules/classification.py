"""What classification sets share: samples, batches, inspection."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from datamodules.checking import Finding
from datamodules.class_samples import ClassSamples
from datamodules.images import (
    DataError,
    Flaw,
    Image8,
    ImageSource,
    decode_image,
    name_of,
    read_source,
)
from datamodules.transforms.classification import CommonTransform, EvalTransform, TrainTransform
from gmf_platform.distributed.order import SampleKey

__all__ = ["ClassificationDataset", "ImagesOfClasses", "InspectableClasses", "collate_images"]


class ClassificationDataset(Dataset[dict[str, Any]]):
    """Images with a label each.

    Args:
        samples: the encoded images and their labels.
        root: stands before an image's id in errors.
        transform: of training or evaluation.
        seed: of the augmentation in training.
    """

    def __init__(
        self,
        samples: ClassSamples,
        root: Path,
        transform: TrainTransform | EvalTransform | CommonTransform,
        *,
        seed: int,
    ) -> None:
        self.samples, self.root = samples, root
        self.transform, self.seed = transform, seed

    def __len__(self) -> int:
        return len(self.samples)

    def path(self, index: int) -> str:
        """The image's file."""
        return f"{self.root}/{self.samples.id(index)}"

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """A sample: image uint8 (H, W, 3), label, id, size and original_size."""
        index = key.sample
        data, identity = self.samples.read(index), self.samples.id(index)
        name = f"{self.root}/{identity}"
        if isinstance(self.transform, TrainTransform):
            image, size = self.transform(data, name=name, seed=(self.seed, *key))
        else:
            image, size = self.transform(data, name=name)
        return _sample(image, size, identity) | {"label": self.samples.label(index)}


class ImagesOfClasses(Dataset[dict[str, Any]]):
    """Images without labels, for prediction; the id of a sample is its file's path.

    Args:
        sources: image files or images.
        transform: of evaluation.
    """

    def __init__(self, sources: Sequence[ImageSource], transform: EvalTransform) -> None:
        self.sources, self.transform = sources, transform

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """A sample: image uint8 (H, W, 3), id, size and original_size."""
        source = self.sources[key.sample]
        image = read_source(source)
        return _sample(self.transform.of_image(image), image.shape[:2], name_of(source))


def _sample(image: Image8, original_size: tuple[int, int], identity: str) -> dict[str, Any]:
    size = image.shape[:2]
    return {"image": image, "id": identity, "size": size, "original_size": original_size}


def collate_images(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join samples whose images are of one size.

    Returns:
        images uint8 (B, 3, H, W) in channels_last memory; labels int64 (B,) where samples have
        them; sizes and original_sizes int64 (B, 2), height and width; ids.
    """
    batch = {
        "images": torch.from_numpy(np.stack([s["image"] for s in samples])).permute(0, 3, 1, 2),
        "sizes": torch.tensor([s["size"] for s in samples]),
        "original_sizes": torch.tensor([s["original_size"] for s in samples]),
        "ids": [s["id"] for s in samples],
    }
    if "label" in samples[0]:
        batch["labels"] = torch.tensor([s["label"] for s in samples])
    return batch


class InspectableClasses:
    """A split for `check-data` (see datamodules.checking.Inspectable).

    Args:
        samples: the encoded images and their labels.
        root: stands before an image's id in errors.
        problems: what is wrong with the list of samples.
    """

    unit = "images"

    def __init__(self, samples: ClassSamples, root: Path, problems: Sequence[DataError]) -> None:
        self.samples, self.root, self._problems = samples, root, problems

    def __len__(self) -> int:
        return len(self.samples)

    def problems(self) -> list[DataError]:
        """Classes without images, folders that are no class."""
        return list(self._problems)

    def notes(self) -> list[str]:
        """Nothing is left out."""
        return []

    def inspect(self, index: int) -> Finding:
        """Decode an image."""
        counts = {self.samples.label(index): 1}
        try:
            image = self._image(index)
        except DataError as error:
            return Finding([error], counts=counts)
        return Finding(size=(image.shape[0], image.shape[1]), counts=counts)

    def judge(self, counts: Mapping[int, int]) -> list[DataError]:
        """Fewer than two classes."""
        found = sum(count > 0 for count in counts.values())
        if found >= 2:
            return []
        return [DataError(f"the images are of {found} classes", flaw=Flaw.BALANCE)]

    def name(self, index: int) -> str:
        """The image's file name."""
        return Path(self.samples.id(index)).name

    def read(self, index: int) -> tuple[Image8, int]:
        """The image (H, W, 3) and its label."""
        return self._image(index), self.samples.label(index)

    def _image(self, index: int) -> Image8:
        return decode_image(self.samples.read(index), f"{self.root}/{self.samples.id(index)}")
