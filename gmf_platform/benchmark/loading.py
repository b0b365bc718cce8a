"""How fast training images are loaded, and what in it takes the time."""

import cProfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from datamodules.base import BaseDataModule
from datamodules.loader import TrainLoader, one_thread
from gmf_platform.distributed.order import SampleKey

__all__ = [
    "FunctionTime",
    "Loading",
    "OneWorker",
    "WaitShare",
    "all_workers",
    "one_worker",
    "waits",
]

_OURS = "datamodules"
_LIBRARY = "albumentations"
_BASES = ("", "BasicTransform", "DualTransform", "ImageOnlyTransform")
"""What transforms of all kinds share is no transform."""


@dataclass(frozen=True)
class FunctionTime:
    """What a function costs, all that it calls included.

    Attributes:
        name: class and function, or module and function.
        milliseconds: of processor time an image.
        share: of the image's time.
        calls: an image.
    """

    name: str
    milliseconds: float
    share: float
    calls: float


@dataclass(frozen=True)
class OneWorker:
    """What one loading process does by itself.

    Attributes:
        images_per_second: by the clock.
        images_per_processor_second: by the processor's time, whatever else the machine does.
        collate_milliseconds: processor time of joining a batch, for each image.
        functions: the costliest first.
    """

    images_per_second: float
    images_per_processor_second: float
    collate_milliseconds: float
    functions: list[FunctionTime]


@dataclass(frozen=True)
class Loading:
    """What the loader gives with all its processes.

    Attributes:
        workers: processes; 0 loads in the training process.
        images_per_second: after the first batches, asked for without pause.
        batch: images in each.
        bytes_per_batch: that go to the device.
    """

    workers: int
    images_per_second: float
    batch: int
    bytes_per_batch: int

    @property
    def seconds_per_batch(self) -> float:
        """A training step that takes longer never waits, by these figures."""
        return self.batch / self.images_per_second


@dataclass(frozen=True)
class WaitShare:
    """Waiting for data at a given speed of training.

    Attributes:
        step_seconds: that each batch is worked on, by another device: here it is slept.
        share: of the time that is waited.
    """

    step_seconds: float
    share: float


def one_worker(data: BaseDataModule, *, images: int) -> OneWorker:
    """Load samples in this process, first as they are, then again with a profiler.

    Args:
        data: set up for training.
        images: samples; those of a run's beginning.
    """
    loader = data.train_loader(steps=1 + images // data.global_batch_size)
    keys = list(islice((key for batch in loader.batches for key in batch), images))
    dataset = data.split("training")
    one_thread()
    dataset[keys[0]]  # opens files, fills caches
    begun, begun_processor = time.perf_counter(), time.thread_time()
    samples = [dataset[key] for key in keys]
    seconds, processor = time.perf_counter() - begun, time.thread_time() - begun_processor
    begun_processor = time.thread_time()
    data.collate(samples, training=True)
    collate = time.thread_time() - begun_processor
    return OneWorker(
        images_per_second=images / seconds,
        images_per_processor_second=images / processor,
        collate_milliseconds=1e3 * collate / images,
        functions=_profiled(dataset, keys),
    )


def _profiled(dataset: torch.utils.data.Dataset, keys: Iterable[SampleKey]) -> list[FunctionTime]:
    profile = cProfile.Profile(time.thread_time)
    count = 0
    for count, key in enumerate(keys, start=1):  # noqa: B007
        profile.runcall(dataset.__getitem__, key)
    entries = [(entry, entry.code) for entry in profile.getstats()]
    total = max(entry.totaltime for entry, _ in entries)
    found = [
        FunctionTime(
            name=name,
            milliseconds=1e3 * entry.totaltime / count,
            share=entry.totaltime / total,
            calls=entry.callcount / count,
        )
        for entry, code in entries
        if not isinstance(code, str) and (name := _name(code.co_filename, code.co_qualname))
    ]
    return sorted(found, key=lambda function: -function.milliseconds)


def _name(file: str, function: str) -> str:
    """How a function of ours, or a transform of albumentations, is called; empty for others."""
    path = Path(file)
    if _OURS in path.parts:
        return function if "." in function else f"{path.stem}.{function}"
    owner, _, method = function.rpartition(".")
    is_transform = _LIBRARY in path.parts and method.startswith("apply")
    return function if is_transform and owner not in _BASES else ""


def all_workers(data: BaseDataModule, *, batches: int, warmup: int) -> Loading:
    """Ask the loader for batches without pause.

    Args:
        data: set up for training.
        batches: that are timed.
        warmup: batches before; those that the processes hold in advance are not slow.
    """
    loader = _loader(data, warmup + batches)
    try:
        stream = iter(loader)
        for _ in range(warmup):
            next(stream)
        begun, size = time.perf_counter(), 0
        for batch in stream:
            size = batch["images"].nbytes
        seconds = time.perf_counter() - begun
    finally:
        loader.close()
    per_batch = loader.batches.plan.per_device
    return Loading(data.num_workers, batches * per_batch / seconds, per_batch, size)


def waits(data: BaseDataModule, *, step_seconds: float, batches: int, warmup: int) -> WaitShare:
    """Ask the loader for batches with a pause after each, as a training loop does.

    Args:
        data: set up for training.
        step_seconds: of the pause.
        batches: that are timed.
        warmup: batches before.
    """
    loader = _loader(data, warmup + batches)
    try:
        begun = 0.0
        for number, _ in enumerate(loader):
            if number == warmup - 1:
                loader.seconds_waited, begun = 0.0, time.perf_counter()
            time.sleep(step_seconds)
        seconds = time.perf_counter() - begun
    finally:
        loader.close()
    return WaitShare(step_seconds, loader.seconds_waited / seconds)


def _loader(data: BaseDataModule, batches: int) -> TrainLoader:
    accumulate = data.plan(1).accumulate
    return data.train_loader(steps=-(-batches // accumulate))
