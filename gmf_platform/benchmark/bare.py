"""The trainer's steps beside those of a bare PyTorch loop, one of each in turns."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Trainer
from torch import Tensor, nn

from gmf_platform.benchmark.phases import log_interval
from gmf_platform.benchmark.timing import synchronise

__all__ = ["Alternating", "BareLoop", "Overhead", "Pair"]


@dataclass(frozen=True)
class Pair:
    """Seconds of one optimiser step of the trainer, and of the same step of a bare loop.

    Attributes:
        trainer: by the wall's clock.
        bare: likewise.
        trainer_processor: what the process was given meanwhile, by all its threads.
        bare_processor: likewise.
        is_logged: the trainer logged the step.
    """

    trainer: float
    bare: float
    trainer_processor: float
    bare_processor: float
    is_logged: bool


@dataclass(frozen=True)
class Overhead:
    """What the platform adds to a bare loop's step.

    Attributes:
        bare: seconds of the bare step, the median.
        added: seconds that the trainer's step takes more: the median of the steps that are not
            logged, and the logged steps' surplus as often as the config logs one.
    """

    bare: float
    added: float

    @property
    def share(self) -> float:
        """Of the bare step."""
        return self.added / self.bare

    @classmethod
    def of(cls, pairs: Sequence[Pair], *, log_every: int, processor: bool) -> "Overhead":
        """From steps in turns.

        Args:
            pairs: at least one.
            log_every: of so many steps the config logs one.
            processor: by the processor's time.
        """
        bare, more = [], dict[bool, list[float]]()
        for pair in pairs:
            a, b = pair.trainer, pair.bare
            if processor:
                a, b = pair.trainer_processor, pair.bare_processor
            bare.append(b)
            more.setdefault(pair.is_logged, []).append(a - b)
        medians = {is_logged: median(added) for is_logged, added in more.items()}
        ordinary = medians.get(False, medians.get(True, 0.0))
        added = ordinary + (medians.get(True, ordinary) - ordinary) / log_every
        return cls(median(bare), added)


class BareLoop:
    """The steps that a few lines of plain PyTorch would make of a task's model and losses.

    The same model, optimiser, precision and clipping as the trainer's; no hooks, no logging, no
    schedule.

    Args:
        trainer: in training, alone or the only process.
    """

    def __init__(self, trainer: Trainer) -> None:
        task: Any = trainer.lightning_module
        self.task, self.optimizer = task, trainer.optimizers[0]
        self.precision, self.clip = trainer.precision_plugin, trainer.gradient_clip_val
        self.device = trainer.strategy.root_device
        scaled = trainer.precision == "16-mixed"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)

    def step(self, batches: Sequence[Any]) -> None:
        """Make an optimiser step of micro-batches."""
        task = self.task
        task.total_loss = _sum  # what the task's own adds is logging
        try:
            self.optimizer.zero_grad()
            for batch in batches:
                batch = move_data_to_device(batch, self.device)
                with self.precision.train_step_context():
                    loss = task.training_step(batch, 0) / len(batches)
                self.scaler.scale(loss).backward()
        finally:
            del task.total_loss
        if self.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(task.parameters(), self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()


def _sum(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


@dataclass
class Alternating:
    """Training batches for the trainer; behind each optimiser step a bare loop makes it again.

    The trainer's step is all that happens between being given a batch and asking for the next.

    Attributes:
        loader: gives the batches.
        trainer: that asks for them.
        warmup: optimiser steps that do not count.
        pairs: what was measured.
    """

    loader: Any
    trainer: Trainer
    warmup: int
    pairs: list[Pair] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        bare: BareLoop | None = None
        given: list[Any] = []
        theirs, steps = (0.0, 0.0), 0
        for batch in self.loader:
            given.append(batch)
            begun = self._now()
            yield batch
            theirs = _plus(theirs, _minus(self._now(), begun))
            if len(given) < self.trainer.accumulate_grad_batches:
                continue
            bare = bare or BareLoop(self.trainer)
            ours = self._timed(lambda: bare.step(given))  # noqa: B023 - called at once
            steps += 1
            if steps > self.warmup:
                is_logged = self.trainer.global_step % log_interval(self.trainer) == 0
                self.pairs.append(Pair(theirs[0], ours[0], theirs[1], ours[1], is_logged))
            given, theirs = [], (0.0, 0.0)

    def _timed(self, work: Callable[[], None]) -> tuple[float, float]:
        begun = self._now()
        work()
        return _minus(self._now(), begun)

    def _now(self) -> tuple[float, float]:
        synchronise(self.trainer.strategy.root_device)
        return time.perf_counter(), time.process_time()


def _plus(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    return a[0] + b[0], a[1] + b[1]


def _minus(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    return a[0] - b[0], a[1] - b[1]
