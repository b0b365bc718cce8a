"""Detection's data sets: augmented for training, resized for evaluation and prediction."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset

from datamodules.detection_split import DetectionSplit
from datamodules.images import Image8, ImageSource, name_of, read_source
from datamodules.transforms.adapter import generators
from datamodules.transforms.common_size import CommonSize
from datamodules.transforms.copy_paste import copy_paste
from datamodules.transforms.detection import (
    DetectionSample,
    DetectionTransform,
    Size,
    View,
    place,
    rescaled,
)
from gmf_platform.distributed.order import SampleKey

__all__ = ["Canvas", "DetectionImages", "EvalDetections", "Opening", "TrainDetections"]


class Canvas(NamedTuple):
    """To what a training image is padded at least, height and width.

    Attributes:
        alone: on a device that takes one image at a time.
        shared: in a batch with others.
    """

    alone: Size
    shared: Size


@dataclass(frozen=True)
class Opening:
    """The first step of a run: it has the largest shape, so that too little memory shows at once.

    Only its padding is larger, with which features change a little, in this one step.

    Attributes:
        keys: its samples.
        mixed: wide and high images may share a batch, which then is as large as both.
    """

    keys: frozenset[SampleKey]
    mixed: bool

    def canvas(self, key: SampleKey, size: Size, transform: DetectionTransform) -> Canvas:
        """To what a sample is padded at least.

        Args:
            key: of the sample.
            size: of its image's file.
            transform: of the training images.
        """
        if key not in self.keys:
            return Canvas(transform.least_padded, transform.least_padded)
        largest = transform.largest(size)
        return Canvas(largest, (max(largest),) * 2 if self.mixed else largest)


class TrainDetections(Dataset[dict[str, Any]]):
    """Augmented images with their objects.

    Args:
        split: the images.
        transform: of images; boxes and masks follow it.
        seed: of the run; a sample is a function of it and the key alone.
        paste: share of samples that get objects of another one.
        opening: the first step of the run.
    """

    def __init__(
        self,
        split: DetectionSplit,
        transform: DetectionTransform,
        *,
        seed: int,
        paste: float,
        opening: Opening,
    ) -> None:
        self.split, self.transform, self.seed = split, transform, seed
        self.paste, self.opening = paste, opening

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """A sample: id, original_size, image, size, objects, seed and canvas."""
        _, draw = generators((self.seed, *key))
        seed = draw.getrandbits(63)  # for the sampling of regions, which happens on the device
        sample, size = self._augmented(key.sample, draw)
        if self.paste and draw.random() < self.paste:
            source, _ = self._augmented(draw.randrange(len(self)), draw)
            side = self.transform.largest(size)[0]
            sample = copy_paste(sample, source, side=side, draw=draw)
        return {
            "id": self.split.image_id(key.sample),
            "original_size": size,
            "image": sample.image,
            "size": sample.image.shape[:2],
            "objects": sample,
            "seed": seed,
            "canvas": self.opening.canvas(key, size, self.transform),
        }

    def _augmented(self, index: int, draw: random.Random) -> tuple[DetectionSample, Size]:
        """An image with its objects, and its file's size."""
        image = self.split.image(index)
        boxes, labels, crowd, _ = self.split.objects(index)
        view = self.transform(image, draw)
        outlines = self.split.outlines(index)
        sample = place(view, boxes=boxes, labels=labels, crowd=crowd, outlines=outlines)
        return sample, (image.shape[0], image.shape[1])


class EvalDetections(Dataset[dict[str, Any]]):
    """Images resized for evaluation, with their objects in the pixels of the file.

    Args:
        split: the images.
        scales: the (short, long) sides to fit into: that of ``image``, then those of ``scaled``.
        common_size: instead, that of all tasks.
    """

    def __init__(
        self,
        split: DetectionSplit,
        scales: Sequence[tuple[int, int]],
        *,
        common_size: CommonSize | None = None,
    ) -> None:
        self.split, self.scales, self.common_size = split, scales, common_size

    def __len__(self) -> int:
        return len(self.split)

    def path(self, index: int) -> str:
        """The image's file."""
        return str(self.split.path(index))

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """A sample: id, original_size, image, size, truth, and with several scales scaled."""
        targets = self.split.targets(key.sample)
        truth = {
            "boxes": torch.from_numpy(targets.boxes),
            "labels": torch.from_numpy(targets.labels),
            "crowd": torch.from_numpy(targets.crowd),
        } | ({} if targets.rles is None else {"rles": targets.rles})
        image = self.split.image(key.sample)
        about = {"id": self.split.image_id(key.sample), "truth": truth}
        if self.common_size is None:
            return about | _fitted(image, self.scales)
        resized = self.common_size(image)
        sizes = {"original_size": image.shape[:2], "size": resized.shape[:2]}
        return about | sizes | {"image": resized}


class DetectionImages(Dataset[dict[str, Any]]):
    """Images as in evaluation, without objects; the id of a sample is its file's path.

    Args:
        sources: image files or images.
        scales: see EvalDetections.
    """

    def __init__(self, sources: Sequence[ImageSource], scales: Sequence[tuple[int, int]]) -> None:
        self.sources, self.scales = sources, scales

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """A sample: id, original_size, image, size, and with several scales scaled."""
        source = self.sources[key.sample]
        return {"id": name_of(source)} | _fitted(read_source(source), self.scales)


def _fitted(image: Image8, scales: Sequence[tuple[int, int]]) -> dict[str, Any]:
    size = image.shape[0], image.shape[1]
    first, *others = (View(image).resized(rescaled(size, *scale)).image for scale in scales)
    sample = {"original_size": size, "image": first, "size": first.shape[:2]}
    if others:
        sample["scaled"] = [{"image": other, "size": other.shape[:2]} for other in others]
    return sample
