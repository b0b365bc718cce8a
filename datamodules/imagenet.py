"""ImageNet, and any set of images with a folder for each class."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from datamodules.base import BaseDataModule
from datamodules.class_folders import (
    Found,
    class_folders,
    find_in_class_folders,
    find_listed,
    some_of,
)
from datamodules.class_samples import ClassSamples, FolderSamples
from datamodules.classification import (
    ClassificationDataset,
    ImagesOfClasses,
    InspectableClasses,
    collate_images,
)
from datamodules.held_out import check_fraction, chosen_by_hash, listed_names, write_list
from datamodules.images import DataError, Flaw, ImageSource
from datamodules.labels import read_class_names
from datamodules.layouts import LAYOUTS
from datamodules.shards import ShardSamples, Split, find_shards
from datamodules.transforms.classification import (
    CommonTransform,
    EvalTransform,
    Interpolation,
    TrainTransform,
)
from datamodules.val_labels import find_val_labels, read_val_labels
from gmf_platform.distributed.order import SampleOrder
from gmf_platform.errors import UserError
from gmf_platform.ranges import NonNegativeFloat, PositiveFloat, PositiveInt, UnitInterval

__all__ = ["ImageNet"]

_FOLDERS: dict[str, Split] = {"training": "train", "validation": "val"}


class ImageNet(BaseDataModule):
    """ImageNet, or any set of images in one of its forms.

    - ``train/CLASS/*`` and ``val/CLASS/*``, suffixes of any case;
    - ``train/CLASS/*`` and ``val/*`` as ILSVRC2012 ships it, with a list of labels;
    - ``CLASS/*`` without a split, of which ``val_fraction`` is for validation;
    - tar shards in ``train/`` and ``val/`` (see datamodules.shards).

    Args:
        root: the data set's folder.
        image_size: side of the network's input in pixels.
        eval_resize: short side before the centre is cut out; None: 256 / 224 of image_size.
        scale: smallest and largest share of an image's area in a training crop.
        ratio: smallest and largest width of a training crop over its height.
        interpolation: of all resizing, antialiased.
        hflip: chance of a mirror image in training.
        rand_augment: RandAugment in timm's notation; null: none.
        color_jitter: change of brightness, contrast and saturation in training without
            RandAugment.
        classes: names of the class folders in label order, or a text file of them; None: the
            training folders, sorted.
        allow_empty_classes: a class may have no images.
        val_fraction: of a set without a split, this share of each class is for validation, chosen
            by a hash of the names, so that most stay where they are when images are added.
        split_seed: another number chooses others.
        val_list: instead, a text file of image names; the one that a run keeps will do.
        val_labels: the file with the labels of ``val/*``; None: looked for.
        global_batch_size: see BaseDataModule.
        eval_batch_size: images per batch in evaluation; they are all of one size.
        batching: see BaseDataModule.
    """

    smaller_training = "smaller images: --data.image_size"
    smaller_evaluation = smaller_training

    def __init__(
        self,
        root: str,
        *,
        image_size: PositiveInt = 224,
        eval_resize: PositiveInt | None = None,
        scale: tuple[UnitInterval, UnitInterval] = (0.08, 1.0),
        ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3),
        interpolation: Interpolation = "bicubic",
        hflip: UnitInterval = 0.5,
        rand_augment: str | None = "rand-m9-mstd0.5-inc1",
        color_jitter: NonNegativeFloat = 0.4,
        classes: list[str] | str | None = None,
        allow_empty_classes: bool = False,
        val_fraction: UnitInterval | None = None,
        split_seed: int = 0,
        val_list: str | None = None,
        val_labels: str | None = None,
        global_batch_size: PositiveInt = 512,
        eval_batch_size: PositiveInt = 100,
        **batching: Any,
    ) -> None:
        super().__init__(
            root,
            global_batch_size=global_batch_size,
            eval_batch_size=eval_batch_size,
            **batching,
        )
        check_fraction(val_fraction)
        if val_fraction is None and val_list is None:  # or else the folder may be of any form
            self.layout = LAYOUTS["datamodules.ImageNet"]
        self.allow_empty_classes = allow_empty_classes
        self.val_fraction, self.split_seed = val_fraction, split_seed
        self.val_list, self.val_labels = val_list, val_labels
        self._opened: dict[str, ShardSamples] = {}
        self._classes = read_class_names(Path(classes)) if isinstance(classes, str) else classes
        _check_names(self._classes or [])
        self._train_transform = TrainTransform(
            image_size=image_size,
            scale=scale,
            ratio=ratio,
            interpolation=interpolation,
            hflip=hflip,
            rand_augment=rand_augment,
            color_jitter=color_jitter,
        )
        self._eval_transform = EvalTransform(
            image_size=image_size,
            resize=int(256 / 224 * image_size) if eval_resize is None else eval_resize,
            interpolation=interpolation,
        )

    @property
    def training_size(self) -> tuple[int, int]:
        """Of the crops."""
        return self._train_transform.image_size, self._train_transform.image_size

    @cached_property
    def class_names(self) -> list[str]:
        """The folders' names, in the order of the labels 0..K-1.

        Without data at hand, and of shards that do not name their classes: ImageNet's 1000
        WordNet ids.
        """
        if self._classes is not None:
            return self._classes
        if self._has_shards("training"):
            return self._shards("training").class_names or _wordnet_ids()
        return class_folders(self._train_folder) or _wordnet_ids()

    @property
    def _is_divided(self) -> bool:
        return self.val_fraction is None and self.val_list is None

    @property
    def _train_folder(self) -> Path:
        folder = self.root / "train"
        return folder if self._is_divided or folder.is_dir() else self.root

    def setup(self, stage: str) -> None:
        """Find the images; before training, keep the list of those for validation.

        Raises:
            UserError: files or labels are missing.
        """
        super().setup(stage)
        trainer = self.trainer
        if stage == "fit" and not self._is_divided and trainer and trainer.is_global_zero:
            write_list(self.run_folder, self._validation_names)

    def found(self, split: str) -> Found:
        """The images of a split that lie in folders, and what is wrong with them.

        Args:
            split: ``training``, ``validation``, or another folder with a folder of each class.

        Raises:
            UserError: there is no such split, or nothing says its labels.
        """
        if not self._is_divided:
            return self._part(split)
        folder = self.root / _FOLDERS.get(split, split)
        if not folder.is_dir():
            raise DataError(self._missing(folder))
        if class_folders(folder) or split == "training":
            return self._in_class_folders(folder)
        labels = read_val_labels(find_val_labels(self.root, folder, self.val_labels))
        found = find_listed(self.root, folder, labels, self.class_names)
        if not found.entries and not found.problems:
            raise DataError(f"{folder}: has no images", flaw=Flaw.EMPTY_CLASS)
        return found

    def samples(self, split: str) -> ClassSamples:
        """The encoded images of a split, with their labels.

        Raises:
            UserError: images are missing, or their classes are not those of class_names.
        """
        if self._has_shards(split):
            return self._fitting(self._shards(split))
        if not self._is_divided:
            self._tree.whole()
        return FolderSamples(self.root, self.found(split).whole())

    def dataset(self, split: str, *, training: bool) -> ClassificationDataset:
        """The images of a split, with the training or the evaluation transform.

        Raises:
            UserError: see samples.
        """
        samples = self.samples(split)
        if training:
            transform: TrainTransform | EvalTransform | CommonTransform = self._train_transform
        else:
            size = self.common_size
            transform = self._eval_transform if size is None else CommonTransform(size)
        return ClassificationDataset(samples, self.root, transform, seed=self.seed)

    def image_names(self, split: str) -> list[str]:
        """See BaseDataModule."""
        samples = self.samples(split)
        return [Path(samples.id(index)).stem for index in range(len(samples))]

    def predict_dataset(self, sources: Sequence[ImageSource]) -> ImagesOfClasses:
        """Images with the evaluation transform."""
        return ImagesOfClasses(sources, self._eval_transform)

    def resizing(self) -> dict[str, Any]:
        """Short side, cut and kernel."""
        transform = self._eval_transform
        return {
            "short": transform.resize,
            "centre": transform.image_size,
            "interpolation": transform.interpolation,
        }

    def predict_groups(self, sources: Sequence[ImageSource]) -> list[list[int]]:
        """Neighbours share a batch, since all come out at one size."""
        return self.eval_groups(self.predict_dataset(sources))

    def collate(self, samples: list[Any], *, training: bool) -> dict[str, Any]:
        """Join samples; see collate_images."""
        return collate_images(samples)

    def order(self, size: int) -> SampleOrder:
        """The training order; of shards, in blocks of neighbours."""
        if self._has_shards("training"):
            return self._shards("training").order(seed=self.seed)
        return super().order(size)

    def inspectable(self, split: str) -> InspectableClasses:
        """The split for `check-data`."""
        if self._has_shards(split):
            self._open_all_shards()
            return InspectableClasses(self._fitting(self._shards(split)), self.root, [])
        found = self.found(split)
        return InspectableClasses(
            FolderSamples(self.root, found.entries), self.root, found.problems
        )

    def _in_class_folders(self, folder: Path) -> Found:
        return find_in_class_folders(
            self.root, folder, self.class_names, allow_empty=self.allow_empty_classes
        )

    @cached_property
    def _tree(self) -> Found:
        """All images of a set without a split."""
        return self._in_class_folders(self._train_folder)

    @cached_property
    def _validation_names(self) -> set[str]:
        names = [name for name, _ in self._tree.entries]
        if self.val_list is not None:
            return listed_names(self.root / self.val_list, names, what="image")
        by_class: dict[int, list[str]] = defaultdict(list)
        for name, label in self._tree.entries:
            by_class[label].append(name)
        return {
            name
            for names in by_class.values()
            for name in chosen_by_hash(names, self._held_out(len(names)), seed=self.split_seed)
        }

    def _held_out(self, images: int) -> int:
        """How many images of a class are for validation: one at least, but not all of them."""
        return min(max(1, round(images * (self.val_fraction or 0))), images - 1)

    def _part(self, split: str) -> Found:
        """The part of a set without a split.

        Raises:
            DataError: another split than the two, or no image is left for this one.
        """
        if split not in _FOLDERS:
            raise DataError(
                f"data.test_split: there is no split {split!r}, only training and validation"
            )
        wanted = split == "validation"
        chosen = self._validation_names
        entries = [entry for entry in self._tree.entries if (entry[0] in chosen) == wanted]
        if not entries:
            raise DataError(
                f"{self._train_folder}: no images of {len(self._tree.entries)} are left for "
                f"{split}: change data.val_fraction or data.val_list"
            )
        # What is wrong with the folders is said once, with the training images.
        return Found(entries, [] if wanted else self._tree.problems)

    def _missing(self, folder: Path) -> str:
        said = f"{folder}: there is no such folder"
        others = class_folders(self.root)
        if others:
            said += (
                f"; {self.root} has the folders {some_of(others)}. "
                "If each of them is a class, say with data.val_fraction (0.1 takes a tenth) or "
                "data.val_list which images are for validation"
            )
        return said

    def _has_shards(self, split: str) -> bool:
        return split in _FOLDERS and bool(find_shards(self.root, _FOLDERS[split]))

    def _shards(self, split: str) -> ShardSamples:
        """The shards of a split, opened once.

        Raises:
            DataError: a shard is missing or cut off.
        """
        if split not in self._opened:
            self._opened[split] = ShardSamples.open(self.root, _FOLDERS[split])
        return self._opened[split]

    def _open_all_shards(self) -> None:
        """Open the shards of both splits, to say at once what is wrong with either.

        Raises:
            DataError: see _shards.
        """
        errors = []
        for split in filter(self._has_shards, _FOLDERS):
            try:
                self._shards(split)
            except DataError as error:
                errors.append(error)
        if errors:
            raise DataError("\n".join(map(str, errors)), flaw=errors[0].flaw)

    def _fitting(self, shards: ShardSamples) -> ShardSamples:
        """Refuse shards whose labels are not those of class_names.

        Raises:
            DataError: naming both.
        """
        theirs, ours = shards.class_names, self.class_names
        if theirs is not None and theirs != ours:
            raise DataError(
                f"{self.root}: the shards were written with the classes {some_of(theirs)} "
                f"({len(theirs)}), and data.classes, or the training shards, say {some_of(ours)} "
                f"({len(ours)}): leave out data.classes, or write the shards again",
                flaw=Flaw.CLASS,
            )
        highest = int(shards.index.labels.max(initial=0))
        if highest >= len(ours):
            raise DataError(
                f"{self.root}: the shards have label {highest}, but there are {len(ours)} classes: "
                "name them with data.classes",
                flaw=Flaw.CLASS,
            )
        return shards


def _check_names(names: list[str]) -> None:
    """Refuse a name that stands for two labels, under both of which its images would be found.

    Raises:
        UserError: naming it.
    """
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"data.classes: {some_of(twice)}: named more than once")


def _wordnet_ids() -> list[str]:
    """ImageNet's 1000 classes in the order of the sorted folders."""
    from timm.data.imagenet_info import ImageNetInfo

    return list(ImageNetInfo("imagenet-1k").label_names())
