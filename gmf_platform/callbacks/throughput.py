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
    """

    images_per_second: float
    data_wait: float
    memory_gib: float
    seconds_per_step: float


class Throughput(Callback):
    """Logs speed, data-wait share, memory and the learning rate of each group.

    Reports come with the trainer's ``log_every_n_steps``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rates: Rates | None = None
        self._begin(time.perf_counter(), step=0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to measure."""
        self._begin(time.perf_counter(), trainer.global_step)
        self._ended = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A validation's time is not training time."""
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on measuring."""
        now = time.perf_counter()
        self._start += now - self._paused
        self._ended = now

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Count the time since the last batch as waiting for data."""
        self._waited += time.perf_counter() - self._ended

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Report where it is due."""
        self._ended = time.perf_counter()
        step = trainer.global_step
        if step == self._step or step % trainer.log_every_n_steps:
            return
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()  # once a report: the time is the device's, not the queue's
            self._ended = time.perf_counter()
        self.rates = self._measure(trainer, step)
        metrics = {
            "speed/images_per_second": self.rates.images_per_second,
            "speed/data_wait": self.rates.data_wait,
            "speed/memory_gib": self.rates.memory_gib,
            **_learning_rates(trainer),
        }
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step - 1)  # Lightning numbers its first step 0
        self._begin(self._ended, step)

    def _begin(self, now: float, step: int) -> None:
        self._start, self._step, self._waited = now, step, 0.0

    def _measure(self, trainer: Trainer, step: int) -> Rates:
        elapsed, steps = self._ended - self._start, step - self._step
        images = steps * trainer.datamodule.global_batch_size  # type: ignore[attr-defined]
        return Rates(
            images_per_second=images / elapsed,
            data_wait=self._waited / elapsed,
            memory_gib=memory_gib(trainer.strategy.root_device),
            seconds_per_step=elapsed / steps,
        )


def _learning_rates(trainer: Trainer) -> dict[str, float]:
    return {
        f"lr/{group.get('name', number)}": group["lr"]
        for optimizer in trainer.optimizers
        for number, group in enumerate(optimizer.param_groups)
    }


def memory_gib(device: torch.device) -> float:
    """Peak memory of a device so far; of this process where the device is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
