"""Loaders that resume in mid-epoch and hand a worker's errors to the user whole."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from gmf_platform.distributed.order import EvalBatches, SampleKey, TrainBatches
from gmf_platform.errors import UserError

__all__ = ["Loader", "TrainLoader", "begin_worker", "one_thread"]

Collate = Callable[[list[Any]], Any]


class _Reporting(Dataset[Any]):
    """A dataset that returns its user errors: torch would wrap them in a worker's traceback."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, key: SampleKey) -> Any:
        try:
            return self.dataset[key]
        except UserError as error:
            return error


class _Collate:
    """Passes the first user error of a batch on in the batch's place."""

    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, samples: list[Any]) -> Any:
        errors = (sample for sample in samples if isinstance(sample, UserError))
        return next(errors, None) or self.collate(samples)


def begin_worker(worker: int) -> None:
    """What a loading process does first (``worker_init_fn``)."""
    one_thread()
    _heed_parent_alone()


def one_thread() -> None:
    """Workers are the parallelism: threads inside each would fight for the same cores."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _heed_parent_alone() -> None:
    """Let a worker live on when a cluster's signal to all processes of a job reaches it too.

    The training process hears it as well, and needs its workers up to the next step's end.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


@contextmanager
def _held_back(number: signal.Signals) -> Iterator[None]:
    """Let a signal wait; where workers could not wait for it (macOS), it does not either."""
    if not hasattr(signal, "sigwaitinfo"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent(parent: int) -> None:
    """Wait for the parent to end this process, as PyTorch does with workers that do not answer."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class Loader:
    """Batches in the order of a batch sampler.

    Deliberately no DataLoader subclass: Lightning rebuilds those with samplers of its own.

    Args:
        dataset: indexed by SampleKey.
        batches: the batch sampler.
        collate: list of samples -> batch.
        num_workers: loading processes; 0 loads in this one.
        pin_memory: page-locked batches, for a faster copy to a GPU.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batches: TrainBatches | EvalBatches | list[list[SampleKey]],
        *,
        collate: Collate,
        num_workers: int,
        pin_memory: bool,
    ) -> None:
        self.dataset, self.batches = dataset, batches
        self.loader: DataLoader[Any] = DataLoader(
            _Reporting(dataset),
            batch_sampler=batches,
            collate_fn=_Collate(collate),
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            worker_init_fn=begin_worker,
        )

    def __len__(self) -> int:
        """Batches, 1 for none.

        Lightning leaves a process without any out of what is computed over all processes, and
        the others would wait for it.
        """
        return max(1, len(self.batches))

    def __iter__(self) -> Iterator[Any]:
        try:
            with _held_back(signal.SIGTERM):  # workers inherit it, until they heed their parent
                batches = iter(self.loader)
            for batch in batches:
                if isinstance(batch, UserError):
                    raise batch
                yield batch
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        """End the worker processes; the garbage collector would wait five seconds for each."""
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator._shutdown_workers()

    @property
    def _iterator(self) -> Any:
        """Where Lightning finds the workers, to end them with the run."""
        return self.loader._iterator

    @_iterator.setter
    def _iterator(self, value: Any) -> None:
        self.loader._iterator = value


class TrainLoader(Loader):
    """The training run's loader: its state is the number of samples consumed.

    Lightning saves ``state_dict`` in each checkpoint and loads it before the first batch.

    Attributes:
        seconds_waited: time that the training loop has spent waiting for batches.
    """

    batches: TrainBatches

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seconds_waited = 0.0
        self._yielded = 0

    def __iter__(self) -> Iterator[Any]:
        self._yielded = self.batches.start
        begun = time.perf_counter()
        for batch in super().__iter__():
            self.seconds_waited += time.perf_counter() - begun
            # Counted when handed over: batches that workers hold in advance are not consumed.
            self._yielded += 1
            yield batch
            begun = time.perf_counter()

    def state_dict(self) -> dict[str, int]:
        """Samples consumed by all ranks together, and the size of the set they come from."""
        return {
            "samples_consumed": self._yielded * self.batches.samples_per_batch,
            "num_samples": self.batches.order.num_samples,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on behind the samples consumed, with any number of processes.

        Raises:
            UserError: the data set has another size than the one the run began with.
        """
        order, expected = self.batches.order, state["num_samples"]
        if order.num_samples != expected:
            raise UserError(
                f"the run began with {expected} training samples, now there are "
                f"{order.num_samples}: restore the data, or start anew with --name or --fresh"
            )
        self.batches.start = state["samples_consumed"] // self.batches.samples_per_batch
        self._yielded = self.batches.start
