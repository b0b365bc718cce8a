"""When a run is saved, and how it stops when asked to."""

import logging
import math
from pathlib import Path
from signal import Signals
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.combined_loader import CombinedLoader

from gmf_platform.callbacks.logger import RunLogger
from gmf_platform.callbacks.throughput import log_interval
from gmf_platform.cluster.signals import are_handled, keep_handlers, requested_signal
from gmf_platform.distributed.checkpoint_io import keep_as, save_checkpoint
from gmf_platform.errors import ExitCode, UserError, check_least
from gmf_platform.models.norm import average_statistics
from gmf_platform.ranges import NonNegativeInt, PositiveInt

__all__ = ["RunCheckpoint"]

log = logging.getLogger(__name__)

_AGREE_EVERY = 8
"""Batches of a validation between two looks at whether any process was asked to stop."""


class RunCheckpoint(Checkpoint):
    """Keeps ``checkpoints/last.ckpt`` and ``checkpoints/best.ckpt`` of a run.

    ``last`` is written every ``every_n_steps`` steps, before and after each validation, and when
    a signal asks the run to stop; the process then exits with ``ExitCode.REQUEUE``. A validation
    that was under way when the run stopped is done again on resume.

    Args:
        every_n_steps: optimiser steps between two saves.
        monitor: the metric that decides which is best.
        mode: whether larger or smaller is better.
        max_idle_restarts: a job that Slurm has requeued so often without a step gained stops
            instead of beginning once more; 0: never. `fit` sees to it.

    Raises:
        UserError: a number is too small.
    """

    def __init__(
        self,
        every_n_steps: PositiveInt = 1000,
        monitor: str = "val/miou",
        mode: Literal["max", "min"] = "max",
        max_idle_restarts: NonNegativeInt = 5,
    ) -> None:
        super().__init__()
        check_least("checkpoint.every_n_steps", every_n_steps)
        check_least("checkpoint.max_idle_restarts", max_idle_restarts, 0)
        self.every_n_steps, self.monitor, self.mode = every_n_steps, monitor, mode
        self.max_idle_restarts = max_idle_restarts
        self.best_score: float | None = None
        self.best_step = -1
        self.validated_step = -1
        self._seen_step = -1
        self._leaving: Signals | None = None
        self._common_batches: list[int] = []

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {
            "best_score": self.best_score,
            "best_step": self.best_step,
            "validated_step": self.validated_step,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a stopped run's state."""
        self.best_score, self.best_step = state_dict["best_score"], state_dict["best_step"]
        self.validated_step = state_dict["validated_step"]

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Be the one that hears signals."""
        keep_handlers()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """On resume: drop what was logged too far, and do a validation that was cut off."""
        keep_handlers()  # Lightning's come after on_fit_start
        self._seen_step = step = trainer.global_step
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                logger.resume_at(step)
        self._leave_if_asked(trainer)  # while it was starting up: all is saved already
        if step == 0:
            return
        log.info("going on at step %d of %d", step, trainer.max_steps)
        last = self.folder(trainer) / "last.ckpt"
        if self.best_step == self.validated_step == step and trainer.ckpt_path == last:
            self._keep_best(trainer)  # again: the run may have been killed just before it
        if self._validation_due(trainer) and self.validated_step != step:
            _validate(trainer)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Leave if the last step was the last: it has been saved, and by now logged too."""
        self._leave_if_wanted(trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Save where it is due or where a signal wants it."""
        step = trainer.global_step
        if step == self._seen_step:
            return  # a micro-batch of an accumulated step: no state to save yet
        self._seen_step = step
        if step == trainer.max_steps:
            trainer.should_stop = True  # makes Lightning validate the last step, whatever it is
        signal = _agreed_signal(trainer)
        if signal or step % self.every_n_steps == 0 or self._validation_due(trainer):
            _log_step(trainer)
            self.save_last(trainer)
            self._leaving = signal

    def on_validation_start(self, trainer: Trainer, *_: Any) -> None:
        """Find out how many batches all processes have: they may hold unequal numbers."""
        if _may_leave(trainer):
            self._common_batches = _common_batches(trainer)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Leave in mid-validation, at a batch that all processes have: it is done again on resume."""
        every = 1 if trainer.world_size == 1 else _AGREE_EVERY
        if _may_leave(trainer) and batch_idx in range(
            0, self._common_batches[dataloader_idx], every
        ):
            self._leave_if_asked(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        """Leave before the scores are computed, which can take long."""
        if _may_leave(trainer):
            self._leave_if_asked(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, and keep the best.

        Raises:
            UserError: the validation did not log the metric that decides which is best.
        """
        if trainer.state.fn != "fit":
            return
        self._check_monitor(trainer)  # in the check before training too: hours earlier
        if trainer.sanity_checking:
            return
        better = self._take_score(trainer)
        self.save_last(trainer)
        if better:
            self._keep_best(trainer)

    def finish(self, trainer: Trainer) -> None:
        """Validate the last step of a run that was killed while doing so.

        Its last checkpoint is at the run's end, so a resume has nothing left to train.
        """
        if self.validated_step == trainer.global_step or not trainer.limit_val_batches:
            return
        log.info("going on at step %d of %d", trainer.global_step, trainer.max_steps)
        trainer.validate(trainer.lightning_module, trainer.datamodule, verbose=False)  # type: ignore[attr-defined]
        if self._take_score(trainer):
            self._keep_best(trainer)

    def folder(self, trainer: Trainer) -> Path:
        """Where the checkpoints go."""
        return Path(trainer.default_root_dir) / "checkpoints"

    def save_last(self, trainer: Trainer) -> None:
        """Write last.ckpt, with all that a resume needs."""
        average_statistics(trainer.lightning_module)
        save_checkpoint(trainer, self.folder(trainer) / "last.ckpt")

    def _check_monitor(self, trainer: Trainer) -> None:
        logged = sorted(key for key in trainer.callback_metrics if key.startswith("val/"))
        if logged and self.monitor not in logged:
            raise UserError(
                f"checkpoint.monitor: the validation logs no {self.monitor!r}; one of "
                f"{', '.join(logged)} would do"
            )

    def _take_score(self, trainer: Trainer) -> bool:
        """Note the validation just made; returns whether it is the best so far."""
        self.validated_step = trainer.global_step
        score = trainer.callback_metrics.get(self.monitor)
        if score is None or not self._is_better(float(score)):
            return False
        self.best_score, self.best_step = float(score), trainer.global_step
        return True

    def _keep_best(self, trainer: Trainer) -> None:
        """Name the last checkpoint the best as well: it holds the same weights."""
        if trainer.is_global_zero:
            keep_as(self.folder(trainer) / "last.ckpt", self.folder(trainer) / "best.ckpt")

    def _is_better(self, score: float) -> bool:
        if self.best_score is None or math.isnan(score):
            return not math.isnan(score)
        return score > self.best_score if self.mode == "max" else score < self.best_score

    def _validation_due(self, trainer: Trainer) -> bool:
        interval = int(trainer.val_check_interval) // trainer.accumulate_grad_batches
        return trainer.global_step == trainer.max_steps or trainer.global_step % interval == 0

    def _leave_if_asked(self, trainer: Trainer) -> None:
        """Leave where all that was computed is saved, or will be computed again."""
        self._leaving = _agreed_signal(trainer)
        self._leave_if_wanted(trainer)

    def _leave_if_wanted(self, trainer: Trainer) -> None:
        if self._leaving is None:
            return
        step, name = trainer.global_step, self._leaving.name
        saved = f"saved at step {step}" if step else "before the first step"
        log.info("%s: %s; the same command goes on from there", name, saved)
        raise SystemExit(ExitCode.REQUEUE)


def _agreed_signal(trainer: Trainer) -> Signals | None:
    """The signal that any process has been sent; all of them act on it at the same step."""
    signal = requested_signal()
    if trainer.world_size == 1:
        return signal
    anyone: bool = trainer.strategy.reduce_boolean_decision(signal is not None, all=False)
    return (signal or Signals.SIGTERM) if anyone else None


def _may_leave(trainer: Trainer) -> bool:
    """Whether a validation can be abandoned: not the check of it before training, which is short."""
    return are_handled() and not trainer.sanity_checking


def _common_batches(trainer: Trainer) -> list[int]:
    """How many batches of each validation set all processes have."""
    loaders = CombinedLoader(trainer.val_dataloaders).flattened
    own = [
        min(limit, len(getattr(loader, "batches", loader)))  # a Loader says 1 for none
        for loader, limit in zip(loaders, trainer.num_val_batches, strict=True)
    ]
    if trainer.world_size == 1:
        return [int(number) for number in own]
    counts = torch.tensor(own, dtype=torch.int64, device=trainer.strategy.root_device)
    dist.all_reduce(counts, op=dist.ReduceOp.MIN)
    return [int(number) for number in counts]


def _log_step(trainer: Trainer) -> None:
    """Log the step's losses, which Lightning does after this: a run that dies in between loses them.

    What is saved is not done again, and so not logged again.
    """
    if trainer.global_step % log_interval(trainer):
        return
    losses = {k: float(v) for k, v in trainer.logged_metrics.items() if k.startswith("train/")}
    for logger in trainer.loggers:
        if isinstance(logger, RunLogger):
            logger.log_metrics(losses, step=trainer.global_step - 1)
            logger.save()


def _validate(trainer: Trainer) -> None:
    """Run a validation as Lightning's training loop does between two batches."""
    loop = trainer.fit_loop.epoch_loop
    loop.val_loop.restarting = False
    trainer.validating = True
    loop.val_loop.run()
    trainer.training = True
    torch.set_grad_enabled(True)
