"""How fast a run goes, and what it waits for."""

import resource
import time
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

__all__ = ["Rates", "Throughput", "memory_gib"]


@dataclass
class Rates:
    """Means since the last report.

    Attributes:
        images_per_second: over all processes.
        data_wait: share of the time spent waiting for data, 0..1.
        memory_gib: peak of the device's memory; of the process's resident memory on a CPU.
        seconds_per_step: wall time of an optimiser step.
        learning_rate: of the first parameter group.
    """

    images_per_second: float
    data_wait: float
    memory_gib: float
    seconds_per_step: float
    learning_rate: float


class Throughput(Callback):
    """Logs speed, data-wait share, memory and the learning rate of each group.

    Reports come with the trainer's ``log_every_n_steps``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rates: Rates | None = None
        self._images, self._seconds = 0, 0.0
        self._start = self._waited = self._paused = 0.0
        self._step = 0
        self._learning_rates: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to measure."""
        self._begin(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A validation's time is not training time."""
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on measuring."""
        self._start += time.perf_counter() - self._paused

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Note the learning rates that the step is made with: it ends by setting the next."""
        self._learning_rates = _learning_rates(trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Report where it is due."""
        step = trainer.global_step
        if step == self._step or step % log_interval(trainer):
            return
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()  # once a report: the time is the device's, not the queue's
        self.rates = self._measure(trainer, step)
        metrics = {
            "speed/images_per_second": self.rates.images_per_second,
            "speed/data_wait": self.rates.data_wait,
            "speed/memory_gib": self.rates.memory_gib,
            **{f"lr/{name}": rate for name, rate in self._learning_rates.items()},
        }
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step - 1)  # Lightning numbers its first step 0
        self._begin(trainer)

    @property
    def mean(self) -> float | None:
        """Images per second over all that was reported; None before the first report."""
        return self._images / self._seconds if self._images else None

    def _begin(self, trainer: Trainer) -> None:
        self._start, self._step = time.perf_counter(), trainer.global_step
        self._waited = _seconds_waited(trainer)

    def _measure(self, trainer: Trainer, step: int) -> Rates:
        elapsed, steps = time.perf_counter() - self._start, step - self._step
        images = steps * trainer.datamodule.global_batch_size  # type: ignore[attr-defined]
        self._images, self._seconds = self._images + images, self._seconds + elapsed
        return Rates(
            images_per_second=images / elapsed,
            data_wait=(_seconds_waited(trainer) - self._waited) / elapsed,
            memory_gib=memory_gib(trainer.strategy.root_device),
            seconds_per_step=elapsed / steps,
            learning_rate=next(iter(self._learning_rates.values())),
        )


def log_interval(trainer: Trainer) -> int:
    """The trainer's ``log_every_n_steps``."""
    return int(trainer.log_every_n_steps)  # type: ignore[attr-defined]  # set by a connector


def _seconds_waited(trainer: Trainer) -> float:
    return float(getattr(trainer.train_dataloader, "seconds_waited", 0.0))


def _learning_rates(trainer: Trainer) -> dict[str, float]:
    return {
        str(group.get("name", number)): group["lr"]
        for optimizer in trainer.optimizers
        for number, group in enumerate(optimizer.param_groups)
    }


def memory_gib(device: torch.device) -> float:
    """Peak memory of a device so far; of this process where the device is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
