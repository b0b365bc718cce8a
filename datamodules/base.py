"""What all datamodules share: batches that are a function of the data and the seed alone."""

import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import Dataset

from datamodules.checking import Inspectable
from datamodules.images import ImageSource, source_size
from datamodules.layouts import Layout, check_root
from datamodules.loader import Loader, TrainLoader
from datamodules.transforms.common_size import CommonSize
from gmf_platform.distributed.order import (
    BatchPlan,
    EvalBatches,
    SampleOrder,
    TrainBatches,
    plan_batches,
)
from gmf_platform.errors import UserError, check_least
from gmf_platform.ranges import NonNegativeInt, PositiveInt

__all__ = ["BaseDataModule", "available_cpus", "default_workers"]


_MOST_SAMPLED = 32
"""Images of a batch that nothing is trained on: enough for the statistics of a norm."""


def available_cpus() -> int:
    """CPUs that this process may use; fewer than the machine has inside a job or container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers() -> int:
    """Loading processes per device where the config names no number."""
    return min(8, available_cpus())


class BaseDataModule(LightningDataModule):
    """Base of all datamodules.

    A subclass gives ``class_names``, ``dataset`` and ``collate``; everything about batches,
    processes and resuming is here.

    Args:
        root: the data set's folder.
        global_batch_size: samples per optimiser step, over all devices and accumulation.
        per_device_batch_size: the most samples a device takes at once; None: its whole share.
            Fewer than its share are made up by gradient accumulation.
        eval_batch_size: images per batch in evaluation and prediction. Padding to a batch mate's
            size changes features a little, so 1 gives the reference number.
        test_split: what ``test`` scores: ``validation``, ``training``, or another folder of the
            set that has targets.
        num_workers: loading processes per device; None: one per CPU, at most 8.
        seed: of order and augmentation.

    Attributes:
        part: the task's name where several are trained together; empty for one alone.
        common_size: of evaluation images, instead of the task's own transform, where several tasks
            are to see the same pixels; None: the task's own.
    """

    layout: Layout | None = None
    smaller_training = "smaller images"
    """How training images are made smaller, for advice to a user whose device is full."""
    smaller_evaluation = smaller_training
    """Likewise those of evaluation and prediction."""

    def __init__(
        self,
        root: str,
        *,
        global_batch_size: PositiveInt,
        per_device_batch_size: PositiveInt | None = None,
        eval_batch_size: PositiveInt = 1,
        test_split: str = "validation",
        num_workers: NonNegativeInt | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        # A process may get no batch of a small split: nothing is repeated to fill it up.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.root = Path(root)
        self.global_batch_size = global_batch_size
        self.per_device_batch_size = per_device_batch_size
        self.eval_batch_size, self.test_split = eval_batch_size, test_split
        self.num_workers_given = num_workers
        self.num_workers = default_workers() if num_workers is None else num_workers
        self.seed = seed
        self.part = ""
        self.common_size: CommonSize | None = None
        self._datasets: dict[tuple[str, bool, CommonSize | None], Dataset[Any]] = {}

    @property
    @abstractmethod
    def class_names(self) -> Sequence[str]:
        """Names of the classes, in the order of the labels."""

    @abstractmethod
    def dataset(self, split: str, *, training: bool) -> Dataset[Any]:
        """Build the data set of a split, indexed by SampleKey; augmented for training or not."""

    @abstractmethod
    def predict_dataset(self, sources: Sequence[ImageSource]) -> Dataset[Any]:
        """Images as in evaluation, without targets; the id of a sample is its file's path."""

    @abstractmethod
    def collate(self, samples: list[Any], *, training: bool) -> dict[str, Any]:
        """Join samples to a batch (the contract is in docs/architecture.md)."""

    @property
    def training_size(self) -> tuple[int, int] | None:
        """Height and width of training images, pixels; None: not known before they are read."""
        return None

    @property
    def run_folder(self) -> Path:
        """Where a run keeps what it must remember of the data."""
        assert self.trainer is not None
        return Path(self.trainer.default_root_dir) / self.part

    def describe(self) -> str:
        """The data, for people to read."""
        images: int = len(self.split("training"))  # type: ignore[arg-type]
        return f"{self.root}, {images} training images, {len(self.class_names)} classes"

    def inspectable(self, split: str) -> Inspectable:
        """The samples of a split as `check-data` sees them.

        Raises:
            UserError: this kind of data set does not give them.
        """
        raise UserError(
            f"data.class_path: {type(self).__name__} cannot be checked sample by sample"
        )

    def split(self, split: str, *, training: bool | None = None) -> Dataset[Any]:
        """The data set of a split, built once.

        Args:
            split: name of the split.
            training: augmented; None: the training split is, others are not.
        """
        training = split == "training" if training is None else training
        key = split, training, None if training else self.common_size
        if key not in self._datasets:
            self._datasets[key] = self.dataset(split, training=training)
        return self._datasets[key]

    def setup(self, stage: str) -> None:
        """Build the data sets that a stage needs, so that wrong data is said at once."""
        check_least("data.eval_batch_size", self.eval_batch_size)
        check_least("data.num_workers", self.num_workers, 0)
        if stage == "predict":
            return
        if self.layout is not None:
            check_root(self.root, self.layout)
        if stage == "fit":
            self.split("training", training=True)
        self.split(self.test_split if stage == "test" else "validation", training=False)

    def plan(self, world_size: int) -> BatchPlan:
        """Per-device batch and accumulation for a number of processes."""
        return plan_batches(self.global_batch_size, world_size, self.per_device_batch_size)

    def plans(self, world_size: int) -> dict[str, BatchPlan]:
        """The plan of each task of joint training; here the one under an empty name."""
        return {"": self.plan(world_size)}

    def steps_per_epoch(self) -> float:
        """Optimiser steps in which each training sample is seen once, on average."""
        return len(self.split("training")) / self.global_batch_size  # type: ignore[arg-type]

    def order(self, size: int) -> SampleOrder:
        """The endless sequence of a run over ``size`` training samples."""
        return SampleOrder(size, seed=self.seed)

    def train_loader(self, *, steps: int, rank: int = 0, world_size: int = 1) -> TrainLoader:
        """The batches of one rank for a run of ``steps`` optimiser steps."""
        dataset = self.split("training")
        size = len(dataset)  # type: ignore[arg-type]
        if size < self.global_batch_size:
            raise UserError(
                f"data.global_batch_size {self.global_batch_size} is more than the {size} "
                f"training samples under {self.root}: set it to {size} or less"
            )
        batches = TrainBatches(self.order(size), self.plan(world_size), rank=rank, steps=steps)
        return TrainLoader(dataset, batches, **self._loading(training=True))

    def sample_loader(self, batches: int, *, rank: int = 0, world_size: int = 1) -> Loader:
        """The run's first training samples in batches that are dealt to the ranks in turn.

        The same ones at each call, which has no effect on the run's own.

        Args:
            batches: over all ranks.
            rank: this process.
            world_size: number of processes.
        """
        dataset = self.split("training")
        order = self.order(len(dataset))  # type: ignore[arg-type]
        size = min(self.per_device_batch_size or self.global_batch_size, _MOST_SAMPLED)
        keys = [
            [order[number * size + i] for i in range(size)]
            for number in range(rank, batches, world_size)
        ]
        return Loader(dataset, keys, **self._loading(training=True))

    def eval_loader(self, split: str, *, rank: int = 0, world_size: int = 1) -> Loader:
        """The batches of one rank for one pass over a split, nothing repeated or left out."""
        groups = self.eval_groups(self.split(split, training=False))
        return self.loader_of(split, groups[rank::world_size])

    def loader_of(self, split: str, groups: Sequence[Sequence[int]]) -> Loader:
        """Evaluation batches of a split, each of the samples of a group."""
        batches = EvalBatches(groups, rank=0, world_size=1)
        dataset = self.split(split, training=False)
        return Loader(dataset, batches, **self._loading(training=False))

    def resizing(self) -> dict[str, Any]:
        """How evaluation brings an image to the network's size, for programs without this package.

        Returns:
            Plain types: ``short`` and ``long``, the sides to fit into; or ``short``, ``centre``
            (the side of the square that is cut out) and ``interpolation``. Empty: images stay as
            they are.
        """
        return {}

    def predict_groups(self, sources: Sequence[ImageSource]) -> list[list[int]]:
        """Which images share a batch of prediction, at most ``eval_batch_size``.

        Only those of one `predicted_size` do: padding to a batch mate's would change features.
        """
        if self.eval_batch_size == 1:
            return [[i] for i in range(len(sources))]
        alike: dict[tuple[int, int], list[int]] = {}
        for i, source in enumerate(sources):
            alike.setdefault(self.predicted_size(*source_size(source)), []).append(i)
        return [part for group in alike.values() for part in _parts(group, self.eval_batch_size)]

    def predicted_size(self, height: int, width: int) -> tuple[int, int]:
        """A size that images have in common if they can share a batch; by default their own."""
        return height, width

    def image_names(self, split: str) -> list[str]:
        """What each evaluation sample's image is called.

        Samples of several tasks that have one name may be of one image. A data set that gives its
        files' names, without suffix, lets tasks share the backbone's pass; by default no other
        task's sample is called the same.
        """
        size = len(self.split(split, training=False))  # type: ignore[arg-type]
        return [f"{self.part}:{index}" for index in range(size)]

    def evaluations(self) -> Iterator[dict[str, Any]]:
        """The ways in which the data is to be scored, one after the other.

        Yields:
            What a line of scores says of the way, while the data is in it.
        """
        yield {}

    def predict_loader(
        self, sources: Sequence[ImageSource], *, rank: int = 0, world_size: int = 1
    ) -> Loader:
        """The batches of one rank for prediction, each as `predict_groups` has it."""
        batches = EvalBatches(self.predict_groups(sources), rank=rank, world_size=world_size)
        return Loader(self.predict_dataset(sources), batches, **self._loading(training=False))

    def eval_groups(self, dataset: Dataset[Any]) -> list[list[int]]:
        """Which samples share an evaluation batch: a function of the data set alone."""
        size = 1 if self.common_size else self.eval_batch_size
        return _parts(range(len(dataset)), size)  # type: ignore[arg-type]

    def train_dataloader(self) -> TrainLoader:
        """Lightning's hook."""
        trainer = self.trainer
        assert trainer is not None
        steps = trainer.max_steps
        return self.train_loader(
            steps=steps, rank=trainer.global_rank, world_size=trainer.world_size
        )

    def val_dataloader(self) -> Loader:
        """Lightning's hook."""
        return self._own_eval_loader("validation")

    def test_dataloader(self) -> Loader:
        """Lightning's hook."""
        return self._own_eval_loader(self.test_split)

    def _own_eval_loader(self, split: str) -> Loader:
        trainer = self.trainer
        assert trainer is not None
        return self.eval_loader(split, rank=trainer.global_rank, world_size=trainer.world_size)

    def _loading(self, *, training: bool) -> dict[str, Any]:
        # Half the workers in evaluation: they live beside the training ones, and images are whole.
        workers = self.num_workers if training else (self.num_workers + 1) // 2
        return {
            "collate": partial(self.collate, training=training),
            "num_workers": workers,
            "pin_memory": torch.cuda.is_available(),
        }


def _parts(indices: Sequence[int], size: int) -> list[list[int]]:
    return [list(indices[i : i + size]) for i in range(0, len(indices), size)]
