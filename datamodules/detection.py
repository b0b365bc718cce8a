"""What all detection sets share: batches with boxes and masks, and the order of their images."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from datamodules.base import BaseDataModule
from datamodules.detection_datasets import (
    DetectionImages,
    EvalDetections,
    Opening,
    TrainDetections,
)
from datamodules.detection_split import DetectionSplit, InspectableDetections, nothing_to_learn
from datamodules.images import DataError, Flaw, ImageSource
from datamodules.transforms.detection import (
    DetectionSample,
    DetectionTransform,
    ScaleJitter,
    ShortSide,
)
from gmf_platform.distributed.order import GroupedOrder, SampleOrder
from gmf_platform.errors import UserError, counted
from gmf_platform.ranges import NonNegativeInt, PositiveFloat, PositiveInt, UnitInterval

__all__ = ["DetectionDataModule", "GroundTruth"]

_MULTIPLE = 32  # of the padded edges: mmdetection's Pad(size_divisor=32)
_LEAST = 64  # pixels of an edge, that backbones must take; only very thin images have less


class GroundTruth(NamedTuple):
    """What a split is scored against.

    Attributes:
        annotation_file: COCO's json.
        image_ids: of the split's images, also of those without objects.
        category_ids: the file's id of each class, in label order.
        class_names: in label order.
    """

    annotation_file: Path
    image_ids: list[int]
    category_ids: list[int]
    class_names: list[str]


class DetectionDataModule(BaseDataModule):
    """Base of detection sets; a subclass says which images there are.

    Args:
        root: see BaseDataModule.
        scale: images are resized to fit into these sides, long and short, in pixels.
        multi_scale: short sides to choose from in training; None: that of ``scale``.
        crop_branch: crop half of the training images as DETR does (see
            datamodules.transforms.detection.ShortSide).
        jitter: instead, large-scale jitter by a factor between these two, and a crop to a square
            (see datamodules.transforms.detection.ScaleJitter).
        jitter_size: side of the square, pixels.
        copy_paste: share of training images that get objects of another one; needs ``jitter`` and
            ``with_masks``.
        flip: share of training images that are flipped.
        with_masks: masks too, not only boxes.
        filter_empty: train without the images that have no object.
        min_size: and without those with a side of fewer pixels.
        aspect_grouping: all images of a training step are wide, or all are high.
        eval_scales: evaluation images come resized to each of these short sides as well (the long
            one in proportion to ``scale``), for model.inference to combine.
        global_batch_size: see BaseDataModule.
        batching: see BaseDataModule.
    """

    smaller_training = "smaller images: --data.scale; --data.multi_scale, --data.jitter_size if set"
    smaller_evaluation = "smaller images: --data.scale, and --data.eval_scales null"

    def __init__(
        self,
        root: str,
        *,
        scale: tuple[PositiveInt, PositiveInt] = (1333, 800),
        multi_scale: list[PositiveInt] | None = None,
        crop_branch: bool = False,
        jitter: tuple[PositiveFloat, PositiveFloat] | None = None,
        jitter_size: PositiveInt = 1024,
        copy_paste: UnitInterval = 0.0,
        flip: UnitInterval = 0.5,
        with_masks: bool = False,
        filter_empty: bool = True,
        min_size: NonNegativeInt = 32,
        aspect_grouping: bool = True,
        eval_scales: list[PositiveInt] | None = None,
        global_batch_size: PositiveInt = 16,
        **batching: Any,
    ) -> None:
        super().__init__(root, global_batch_size=global_batch_size, **batching)
        self.short, self.long = min(scale), max(scale)
        self.copy_paste, self.with_masks = copy_paste, with_masks
        self.filter_empty, self.min_size = filter_empty, min_size
        self.aspect_grouping, self.eval_scales = aspect_grouping, eval_scales
        self.transform: DetectionTransform = ShortSide(
            multi_scale or [self.short], self.long, crop_branch=crop_branch, flip=flip
        )
        if jitter is not None:
            if multi_scale or crop_branch:
                raise UserError(
                    "data.jitter is one way to resize, data.multi_scale and data.crop_branch are "
                    "another: set jitter to null, or multi_scale to null and crop_branch to false"
                )
            self.transform = ScaleJitter(*jitter, jitter_size, flip=flip)
        if copy_paste and (jitter is None or not with_masks):
            raise UserError("data.copy_paste needs data.jitter (0.1, 2.0) and data.with_masks true")

    @property
    def training_size(self) -> tuple[int, int]:
        """Of the largest images that are wide; with ``jitter``, of the square."""
        return self.transform.largest((self.short, self.long))

    @abstractmethod
    def images(self, split: str) -> DetectionSplit:
        """All images of a split.

        Raises:
            UserError: there is no such split, or its files cannot be read.
        """

    def dataset(self, split: str, *, training: bool) -> TrainDetections | EvalDetections:
        """The images of a split; in training without those that the recipe leaves out.

        Raises:
            UserError: anything is wrong with the annotation file, or images are not there.
        """
        images = self.images(split)
        _refuse([*images.annotations.problems, *images.absent()])
        if not training:
            return EvalDetections(images, self._eval_scales(), common_size=self.common_size)
        images = self._for_training(images)
        order = self._order(images)
        opening = Opening(
            frozenset(order[position] for position in range(self.global_batch_size)),
            mixed=self.transform.turns or _mixes(order, _is_high(images)),
        )
        return TrainDetections(
            images, self.transform, seed=self.seed, paste=self.copy_paste, opening=opening
        )

    def predict_dataset(self, sources: Sequence[ImageSource]) -> DetectionImages:
        """Images as in evaluation."""
        return DetectionImages(sources, self._eval_scales())

    def resizing(self) -> dict[str, Any]:
        """The two sides."""
        return {"short": self.short, "long": self.long}

    def inspectable(self, split: str) -> InspectableDetections:
        """The split for `check-data`."""
        return InspectableDetections(self.images(split))

    def ground_truth(self, split: str, *, masks: bool = False) -> GroundTruth:
        """What a split is scored against.

        Args:
            split: its name.
            masks: masks are to be scored too.

        Raises:
            DataError: they are, and an object of the split has none.
        """
        images = self.images(split)
        if masks and self.with_masks:
            _refuse(list(images.shapeless()))
        file = images.annotations
        ids = file.image_ids[images.images].tolist()
        return GroundTruth(file.path, ids, file.category_ids, file.class_names)

    def order(self, size: int) -> SampleOrder:
        """The endless sequence of a run; see ``aspect_grouping``."""
        dataset = self.split("training")
        assert isinstance(dataset, TrainDetections)
        return self._order(dataset.split)

    def image_names(self, split: str) -> list[str]:
        """See BaseDataModule."""
        images = self.images(split)
        return [images.path(index).stem for index in range(len(images))]

    def eval_groups(self, dataset: Dataset[Any]) -> list[list[int]]:
        """Images of like shape share a batch, so that little is padded; no file is opened."""
        assert isinstance(dataset, EvalDetections)
        step = self.eval_batch_size
        if step == 1 or self.common_size is not None:
            return super().eval_groups(dataset)
        heights, widths = dataset.split.sizes.T
        order = np.argsort(heights / widths, kind="stable").tolist()
        return [order[i : i + step] for i in range(0, len(order), step)]

    def collate(self, samples: list[dict[str, Any]], *, training: bool) -> dict[str, Any]:
        """Join samples; images are padded right and below to a common multiple of 32, at least 64.

        Training batches have ``targets``, evaluation batches ``truth`` (none for image files), and
        with ``eval_scales`` ``scaled``: images and sizes for each.
        """
        batch: dict[str, Any] = {
            **_images_and_sizes(samples),
            "original_sizes": torch.tensor([sample["original_size"] for sample in samples]),
            "ids": [sample["id"] for sample in samples],
        }
        if training:
            batch["targets"] = _targets(
                samples, (batch["images"].shape[2], batch["images"].shape[3])
            )
        if "truth" in samples[0]:
            batch["truth"] = [sample["truth"] for sample in samples]
        if "scaled" in samples[0]:
            by_scale = zip(*(sample["scaled"] for sample in samples), strict=True)
            batch["scaled"] = [_images_and_sizes(versions) for versions in by_scale]
        return batch

    def _for_training(self, images: DetectionSplit) -> DetectionSplit:
        """Without images of no object or of a tiny side (mmdetection's ``filter_cfg``).

        Raises:
            DataError: none is left.
        """
        file = images.annotations
        if not file.num_objects[images.images].any():
            raise DataError(nothing_to_learn(file), flaw=Flaw.BALANCE)
        if not self.filter_empty:
            return images
        kept = (file.num_objects[images.images] > 0) & (images.sizes.min(1) >= self.min_size)
        if not kept.any():
            raise DataError(
                f"{file.path}: all images with objects have a side of less than data.min_size "
                f"{self.min_size} pixels"
            )
        return replace(images, images=images.images[kept])

    def _order(self, images: DetectionSplit) -> SampleOrder:
        if not self.aspect_grouping:
            return SampleOrder(len(images), seed=self.seed)
        groups = _is_high(images).astype(int).tolist()
        return GroupedOrder(groups, seed=self.seed, batch_size=self.global_batch_size)

    def _eval_scales(self) -> list[tuple[int, int]]:
        """(short, long) sides; mmdetection's test-time scales also keep the bound's proportion."""
        shorts = self.eval_scales or []
        others = [(short, round(short * self.long / self.short)) for short in shorts]
        return [(self.short, self.long), *others]


def _is_high(images: DetectionSplit) -> NDArray[np.bool_]:
    """Higher than wide: the two groups of mmdetection's AspectRatioBatchSampler."""
    heights, widths = images.sizes.T
    return np.asarray(heights > widths)


def _mixes(order: SampleOrder, is_high: NDArray[np.bool_]) -> bool:
    """Whether wide and high images may share a batch."""
    grouped = isinstance(order, GroupedOrder) and not order.is_mixed
    return not grouped and bool(is_high.any()) and not is_high.all()


def _refuse(problems: Sequence[DataError]) -> None:
    """Raise the first of some problems.

    Raises:
        DataError: there are any.
    """
    if len(problems) > 1:
        raise DataError(
            f"{problems[0]}\n(and {counted(len(problems) - 1, 'more problem', 'more problems')}: "
            "`check-data` lists all)",
            flaw=problems[0].flaw,
        )
    if problems:
        raise problems[0]


def _images_and_sizes(samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    canvases = [sample["canvas"] for sample in samples if "canvas" in sample]
    least = [canvas.shared if len(samples) > 1 else canvas.alone for canvas in canvases]
    shapes = [*least, *(sample["image"].shape[:2] for sample in samples)]
    height, width = (
        -(-max(*edges, _LEAST) // _MULTIPLE) * _MULTIPLE for edges in zip(*shapes, strict=True)
    )
    images = _zeros(len(samples), height, width, 3)
    for image, sample in zip(images, samples, strict=True):
        rows, columns = sample["image"].shape[:2]
        image[:rows, :columns] = torch.from_numpy(sample["image"])
    sizes = torch.tensor([sample["size"] for sample in samples])
    return {"images": images.permute(0, 3, 1, 2), "sizes": sizes}


def _targets(samples: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> list[dict[str, Any]]:
    """The training targets of each sample, all views of a few tensors.

    A tensor of its own costs a file descriptor on its way from the worker: with several for each
    image of a batch, some loaders would use up the thousand that a process may have.
    """
    objects: list[DetectionSample] = [sample["objects"] for sample in samples]
    boxes = _split([o.boxes for o in objects])
    labels = _split([o.labels for o in objects])
    crowd = _split([o.crowd for o in objects])
    masks = _masks(objects, size)
    return [
        {"boxes": boxes[i], "labels": labels[i], "crowd": crowd[i], "seed": sample["seed"]}
        | ({} if masks is None else {"masks": masks[i]})
        for i, sample in enumerate(samples)
    ]


def _split(arrays: Sequence[NDArray[Any]]) -> tuple[Tensor, ...]:
    joined = torch.from_numpy(np.concatenate(arrays))
    return joined.split([len(array) for array in arrays])


def _masks(objects: Sequence[DetectionSample], size: tuple[int, int]) -> tuple[Tensor, ...] | None:
    """Masks uint8 (N, H, W) of each sample, at the size of the batch."""
    patches = [o.masks for o in objects if o.masks is not None]
    if len(patches) < len(objects):
        return None
    joined = _zeros(sum(map(len, patches)), *size)
    canvases = joined.numpy()
    for canvas, (top, left, pixels) in zip(canvases, chain.from_iterable(patches), strict=True):
        canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return joined.split([len(masks) for masks in patches])


def _zeros(*shape: int) -> Tensor:
    """Bytes of 0, of which only the pages that are written cost time.

    In a loader process they lie in the memory that it shares with the trainer, as torch's own
    collate has it, so that masks are neither cleared nor copied. The system gives both kinds zeroed.
    """
    if get_worker_info() is None or not all(shape):
        return torch.from_numpy(np.zeros(shape, np.uint8))
    storage = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)
