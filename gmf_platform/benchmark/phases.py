"""Where the time of training steps goes: each moment is charged to one phase."""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import Profiler

from gmf_platform.benchmark.collectives import Collectives
from gmf_platform.benchmark.timing import Clock, synchronise

__all__ = ["COLLECTIVES", "PHASES", "PhaseClock", "StepTimes", "StepWatch", "log_interval"]

LOOP, LOGGING, COLLECTIVES = "Lightning's loop", "logging", "collectives"
"""Phases that PHASES does not name; callbacks are phases by their class's name."""

PHASES = {
    "train_dataloader_next": "data wait",
    "batch_to_device": "copy to the device",
    "transfer_batch_to_device": "copy to the device",
    "training_step": "forward and losses",
    "backward": "backward",
    "optimizer_step": "optimiser",
    "optimizer_zero_grad": "optimiser",
    "configure_gradient_clipping": "optimiser",
}
"""Actions that Lightning names, without the class in front, to phases of any training loop."""


@dataclass
class StepTimes:
    """Seconds by phase of each optimiser step that was watched.

    Attributes:
        ordinary: of steps whose losses were not logged.
        logged: of those that were.
        log_every: of so many steps the config logs one.
    """

    log_every: int
    ordinary: list[dict[str, float]] = field(default_factory=list)
    logged: list[dict[str, float]] = field(default_factory=list)

    def mean(self) -> dict[str, float]:
        """Seconds of a step by phase, with the logged steps' part as it is in a run."""
        share = 1 / self.log_every if self.ordinary else 1.0
        names = {name for step in self.ordinary + self.logged for name in step}
        means: dict[str, float] = {}
        for name in names:
            logged = _mean(self.logged, name) if self.logged else _mean(self.ordinary, name)
            ordinary = _mean(self.ordinary, name) if self.ordinary else 0.0
            means[name] = (1 - share) * ordinary + share * logged
        return means


def log_interval(trainer: Trainer) -> int:
    """The trainer's ``log_every_n_steps``."""
    return int(trainer.log_every_n_steps)  # type: ignore[attr-defined]  # set by a connector


def _mean(steps: list[dict[str, float]], name: str) -> float:
    return sum(step.get(name, 0.0) for step in steps) / len(steps)


class PhaseClock(Profiler):
    """Charges each moment to the innermost action under way that Lightning names.

    Phases are those of PHASES; a callback's hooks are a phase by its class's name; what is left is
    the loop's own. On a GPU each change of phase waits for the device.

    Args:
        device: that the steps run on.
        clock: see `interleaved`.
    """

    def __init__(self, device: torch.device, *, clock: Clock = "wall") -> None:
        super().__init__()
        self.device = device
        self._now = time.perf_counter if clock == "wall" else time.process_time
        self._under_way: list[tuple[str, str]] = []
        self._seconds: dict[str, float] = defaultdict(float)
        self._last = self._now()

    def start(self, action_name: str) -> None:
        """Lightning's hook."""
        self._charge()
        self._under_way.append((action_name, _phase(action_name)))

    def stop(self, action_name: str) -> None:
        """Lightning's hook; of actions that an error cut off nothing is heard."""
        self._charge()
        while self._under_way and self._under_way.pop()[0] != action_name:
            pass

    def take(self) -> dict[str, float]:
        """Seconds by phase since the last call."""
        self._charge()
        seconds, self._seconds = self._seconds, defaultdict(float)
        return seconds

    def summary(self) -> str:
        """Nothing: the benchmark prints."""
        return ""

    def _charge(self) -> None:
        synchronise(self.device)
        now = self._now()
        phase = self._under_way[-1][1] if self._under_way else LOOP
        self._seconds[phase] += now - self._last
        self._last = now

    def timed(self, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        """The function, whose time is charged to a phase of its own."""

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            self._charge()
            self._under_way.append((phase, phase))
            try:
                return function(*args, **kwargs)
            finally:
                self.stop(phase)

        return call


def _phase(action: str) -> str:
    owner, _, name = action.rpartition(".")
    if owner.startswith("[Callback]"):
        return owner.removeprefix("[Callback]").partition("{")[0]
    return PHASES.get(name, LOOP)


class StepWatch(Callback):
    """Takes the phases of each optimiser step behind the warm-up.

    Args:
        clock: the trainer's profiler.
        warmup: optimiser steps that do not count.
        log_every: what the config says.

    Attributes:
        times: what was found.
        collectives: counts what is asked of torch.distributed.
        collectives_of_step: calls and bytes by function, of a step that counts, on average.
    """

    def __init__(self, clock: PhaseClock, *, warmup: int, log_every: int) -> None:
        self.clock, self.warmup = clock, warmup
        self.times = StepTimes(log_every)
        self.collectives = Collectives()
        self.collectives_of_step: dict[str, dict[str, float]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make logging a phase of its own, which Lightning has no name for."""
        connector = trainer._logger_connector
        for owner, name in ((pl_module, "log_dict"), (connector, "update_train_step_metrics")):
            setattr(owner, name, self.clock.timed(getattr(owner, name), LOGGING))

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Take what has passed since the step before began."""
        if trainer.fit_loop.total_batch_idx % trainer.accumulate_grad_batches:
            return
        seconds, done = self.clock.take(), trainer.global_step
        if done <= self.warmup:
            self.collectives.clear()
            return
        is_logged = done % log_interval(trainer) == 0
        (self.times.logged if is_logged else self.times.ordinary).append(seconds)
        self.collectives_of_step = self.collectives / (done - self.warmup)
