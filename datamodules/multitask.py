"""Data sets of several tasks, joined to one."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from torch.utils.data import Dataset

from datamodules.base import BaseDataModule, default_workers
from datamodules.classification import collate_images
from datamodules.images import ImageSource, name_of, read_source
from datamodules.joint_loader import JointLoader, JointTrainLoader, together
from datamodules.transforms.common_size import CommonSize
from gmf_platform.distributed.order import BatchPlan, SampleKey
from gmf_platform.distributed.turns import Turns
from gmf_platform.errors import UserError, check_least, keys_of_task
from gmf_platform.ranges import NonNegativeInt, PositiveInt

__all__ = ["MultiTask"]

Answer = TypeVar("Answer")


class JointImages(Dataset[dict[str, Any]]):
    """Images at a size for all tasks; the id of a sample is its file's path.

    Args:
        sources: image files or images.
        size: makes it.
    """

    def __init__(self, sources: Sequence[ImageSource], size: CommonSize) -> None:
        self.sources, self.common_size = sources, size

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """A sample: image uint8 (H, W, 3), id, size and original_size."""
        source = self.sources[key.sample]
        image = read_source(source)
        resized = self.common_size(image)
        sizes = {"size": resized.shape[:2], "original_size": image.shape[:2]}
        return {"id": name_of(source), "image": resized} | sizes


class MultiTask(BaseDataModule):
    """The data of joint training: a datamodule for each task, each with its own batch and epochs.

    A training step holds a batch of every task, or, with ``turns``, of one. Each task has its own
    ``global_batch_size``; where its ``per_device_batch_size`` is smaller than a device's share, the
    rest is accumulated for that task. A class of a task is called ``TASK/CLASS`` here.

    Args:
        tasks: datamodules by the names that the tasks have in ``model.tasks``. The seed of all of
            them is the one below.
        joint_size: long and short side, pixels, that images are made to fit for all tasks at once,
            as `predict` does it. Each side is a multiple of 32, so that nothing is padded.
        joint_scores: `validate` and `test` score each task a second time, at the joint size.
        turns: one task a step, and how it is chosen (gmf_platform.distributed.turns); None: every
            step is of all tasks.
        eval_batch_size: images that `predict` takes at once, of one joint size; in validation and
            test each task has its own.
        num_workers: loading processes per device that tasks without a number of their own share;
            None: one per CPU, at most 8.
        seed: of order, augmentation and turns.

    Raises:
        UserError: there are no tasks.
    """

    smaller_evaluation = "smaller images: --data.joint_size"

    def __init__(
        self,
        tasks: dict[str, BaseDataModule],
        *,
        joint_size: tuple[PositiveInt, PositiveInt] = (1333, 800),
        joint_scores: bool = True,
        turns: Turns | None = None,
        eval_batch_size: PositiveInt = 1,
        num_workers: NonNegativeInt | None = None,
        seed: int = 0,
    ) -> None:
        if not tasks:
            raise UserError("data.tasks is empty: name a datamodule for each of model.tasks")
        self.tasks, self.turns = tasks, turns
        self.joint_size, self.joint_scores = CommonSize(*joint_size), joint_scores
        super().__init__(
            "",
            global_batch_size=0,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
        )
        workers = default_workers() if num_workers is None else num_workers
        for name, data in tasks.items():
            data.seed, data.part = seed, name
            if data.num_workers_given is None:
                data.num_workers = -(-workers // len(tasks))

    @property
    def class_names(self) -> Sequence[str]:
        """``TASK/CLASS`` of all tasks, in their order."""
        return [
            f"{name}/{label}" for name, data in self.tasks.items() for label in data.class_names
        ]

    @property
    def global_batch_size(self) -> int:
        """Samples per optimiser step, of all tasks together; with turns on average."""
        shares = self.shares()
        return round(sum(x.global_batch_size * shares[name] for name, x in self.tasks.items()))

    @global_batch_size.setter
    def global_batch_size(self, value: int) -> None:
        """The tasks have their own."""

    @property
    def test_split(self) -> str:
        """What ``test`` scores, of each task."""
        splits = {name: data.test_split for name, data in self.tasks.items()}
        if len({*splits.values()}) == 1:
            return next(iter(splits.values()))
        return ", ".join(f"{name}: {split}" for name, split in splits.items())

    @test_split.setter
    def test_split(self, value: str) -> None:
        """The tasks have their own."""

    def setup(self, stage: str) -> None:
        """Set up each task's data.

        Raises:
            UserError: as a task's datamodule says it, with the key under ``data.tasks``.
        """
        check_least("data.eval_batch_size", self.eval_batch_size)
        check_least("data.num_workers", self.num_workers, 0)
        for name, data in self.tasks.items():
            data.trainer = self.trainer
            with keys_of_task(name):
                data.setup(stage)

    def describe(self) -> str:
        """Each task's data, for people to read."""
        said = self._of_each(lambda data: data.describe())
        return "; ".join(f"{name}: {text}" for name, text in said.items())

    def dataset(self, split: str, *, training: bool) -> Dataset[Any]:
        """There is none of all tasks.

        Raises:
            UserError: always.
        """
        raise UserError("data: name one of data.tasks by a config of its own")

    def predict_dataset(self, sources: Sequence[ImageSource]) -> JointImages:
        """Images at the joint size."""
        return JointImages(sources, self.joint_size)

    def predicted_size(self, height: int, width: int) -> tuple[int, int]:
        """The joint one: nothing is padded."""
        return self.joint_size.size(height, width)

    def collate(self, samples: list[Any], *, training: bool) -> dict[str, Any]:
        """Join samples of `predict_dataset`."""
        return collate_images(samples)

    def evaluations(self) -> Iterator[dict[str, Any]]:
        """Each task at its own size; then, with ``joint_scores``, all at the joint one."""
        yield {"size": "of each task"}
        if not self.joint_scores:
            return
        for data in self.tasks.values():
            data.common_size = self.joint_size
        try:
            yield {"size": f"{self.joint_size.long} x {self.joint_size.short}"}
        finally:
            for data in self.tasks.values():
                data.common_size = None

    @property
    def sizes(self) -> dict[str, int]:
        """Training samples of each task."""
        return self._of_each(lambda data: len(data.split("training")))  # type: ignore[arg-type]

    def shares(self) -> dict[str, float]:
        """The share of the steps that each task takes part in."""
        return (
            dict.fromkeys(self.tasks, 1.0) if self.turns is None else self.turns.shares(self.sizes)
        )

    def plans(self, world_size: int) -> dict[str, BatchPlan]:
        """Per-device batch and accumulation of each task.

        Raises:
            UserError: a task's numbers do not divide, with the key under ``data.tasks``.
        """
        return self._of_each(lambda data: data.plan(world_size))

    def plan(self, world_size: int) -> BatchPlan:
        """All tasks together; each accumulates inside its step."""
        self.plans(world_size)
        batch = self.global_batch_size
        return BatchPlan(batch, batch // world_size, 1, world_size)

    def steps_per_epoch(self) -> float:
        """Optimiser steps in which each sample of each task is seen at least once, on average."""
        shares = self.shares()
        return max(data.steps_per_epoch() / shares[name] for name, data in self.tasks.items())

    def train_loader(  # type: ignore[override]
        self, *, steps: int, rank: int = 0, world_size: int = 1
    ) -> JointTrainLoader:
        """The batches of one rank for a run of ``steps`` optimiser steps.

        Raises:
            UserError: a task has fewer samples than its batch, with the key under ``data.tasks``.
        """
        loaders = self._of_each(
            lambda data: data.train_loader(steps=steps, rank=rank, world_size=world_size)
        )
        return JointTrainLoader(loaders, turns=self.turns, seed=self.seed, steps=steps)

    def eval_loader(  # type: ignore[override]
        self, split: str, *, rank: int = 0, world_size: int = 1
    ) -> JointLoader:
        """One pass over a split of all tasks.

        Args:
            split: ``validation``, or `test_split` for the one that each task names itself.
            rank: this process.
            world_size: number of processes.
        """
        is_test = split == self.test_split
        splits = {name: x.test_split if is_test else split for name, x in self.tasks.items()}
        groups, names = {}, {}
        for name, data in self.tasks.items():
            with keys_of_task(name):
                groups[name] = data.eval_groups(data.split(splits[name], training=False))
                names[name] = data.image_names(splits[name])
        own = together(groups, names)[rank::world_size]
        loaders = {
            name: data.loader_of(splits[name], [batch[name] for batch in own if name in batch])
            for name, data in self.tasks.items()
        }
        return JointLoader(loaders, [list(batch) for batch in own])

    def _of_each(self, ask: Callable[[BaseDataModule], Answer]) -> dict[str, Answer]:
        """What each task's data answers; in errors, its keys are those under ``data.tasks``."""
        answers = {}
        for name, data in self.tasks.items():
            with keys_of_task(name):
                answers[name] = ask(data)
        return answers
