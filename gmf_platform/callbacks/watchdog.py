"""Ends a run in which a process has died or hangs, and says which one and where."""

import re
import signal
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from gmf_platform.cluster.heartbeats import LOST, describe
from gmf_platform.cluster.watchdog import WatchThread, tell
from gmf_platform.errors import ExitCode, UserError
from gmf_platform.ranges import NonNegativeFloat

__all__ = ["Watchdog"]

_CONNECTION = re.compile(r"gloo|NCCL|[Cc]onnection (closed|reset|refused)|Broken pipe|TCPStore")


class Watchdog(Callback):
    """Watches that training passes boundaries: batches, backward passes, saves, validations.

    Each process leaves a heartbeat in ``heartbeats/`` in the run's folder. If one passes no
    boundary for ``timeout_minutes``, all write down their stacks, name the rank that is behind,
    and leave with ``ExitCode.FAILED``. If one dies and the others lose their connection to it,
    they say which one it was instead of what the network noticed.

    Args:
        timeout_minutes: longer than the longest time between boundaries in a sound run, which is
            compiling, or scoring a large validation set; shorter than the strategy's
            ``timeout_minutes``, behind which the backend ends the process without a word from us.
            0 for none.

    Raises:
        UserError: ``timeout_minutes`` is negative.
    """

    def __init__(self, timeout_minutes: NonNegativeFloat = 20.0) -> None:
        super().__init__()
        if timeout_minutes < 0:
            raise UserError(f"watchdog.timeout_minutes: {timeout_minutes} is no time")
        self.timeout_minutes = timeout_minutes
        self._thread: WatchThread | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to watch, when all processes are there."""
        if stage != "fit" or not self.timeout_minutes:
            return
        run = Path(trainer.default_root_dir)
        folder = run / "heartbeats"
        folder.mkdir(parents=True, exist_ok=True)
        if trainer.is_global_zero:
            for old in folder.iterdir():
                old.unlink(missing_ok=True)
        trainer.strategy.barrier()
        launcher: Any = trainer.strategy.launcher
        self._thread = WatchThread(
            folder,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            timeout=60 * self.timeout_minutes,
            log=run / "log.txt",
            before_leaving=lambda: _end_children(launcher),
        )
        self._thread.start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Done."""
        if self._thread is not None:
            self._thread.stop()
            self._thread = None

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Say why this process leaves, or, if it lost another one, which.

        The thread goes on in a process of many: leaving can hang too.

        Raises:
            SystemExit: another process is gone, with ``ExitCode.FAILED``.
        """
        thread = self._thread
        if thread is None:
            return
        if trainer.world_size == 1:
            self.teardown(trainer, pl_module, "fit")
            return
        if not _is_lost_connection(exception):
            thread.leave_behind(_first_line(exception))
            return
        thread.leave_behind(LOST)
        states = thread.find_culprit()
        known = describe(states)
        message = f"{known}\nnoticed by rank {thread.rank}: {_first_line(exception)}"
        is_first = all(s.is_to_blame for r, s in states.items() if r < thread.rank)
        tell(message, thread.log if is_first else None)
        if any(state.is_to_blame for state in states.values()):
            for logger in trainer.loggers:
                logger.finalize("failed")
            raise SystemExit(ExitCode.FAILED)

    def on_fit_start(self, trainer: Trainer, *_: Any) -> None:
        """See pass_by of WatchThread, as in all that follow."""
        self._pass_by("before training")

    def on_sanity_check_start(self, trainer: Trainer, *_: Any) -> None:
        """Boundary."""
        self._pass_by("trying out the validation")

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Boundary."""
        self._pass_by("waiting for the first batch")

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Boundary."""
        self._pass_by(f"{_step(trainer)}, forward")

    def on_before_backward(self, trainer: Trainer, *_: Any) -> None:
        """Boundary."""
        self._pass_by(f"{_step(trainer)}, backward")

    def on_before_optimizer_step(self, trainer: Trainer, *_: Any) -> None:
        """Boundary."""
        self._pass_by(f"{_step(trainer)}, optimiser")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Boundary."""
        self._pass_by(f"waiting for a batch after step {trainer.global_step}")

    def on_save_checkpoint(self, trainer: Trainer, *_: Any) -> None:
        """Boundary."""
        self._pass_by(f"saving after step {trainer.global_step}")

    def on_validation_start(self, trainer: Trainer, *_: Any) -> None:
        """Boundary."""
        self._pass_by(f"validation after step {trainer.global_step}")

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """A boundary that other ranks may pass less often."""
        place = f"validation after step {trainer.global_step}, batch {batch_idx}"
        self._pass_by(place, shared=False)

    def on_validation_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        """Boundary."""
        self._pass_by(f"validation after step {trainer.global_step}, scores")

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        """Boundary."""
        self._pass_by(f"validated after step {trainer.global_step}")

    def _pass_by(self, place: str, *, shared: bool = True) -> None:
        if self._thread is not None:
            self._thread.pass_by(place, shared=shared)


def _step(trainer: Trainer) -> str:
    step = f"step {trainer.global_step + 1}"
    parts = trainer.accumulate_grad_batches
    if parts == 1:
        return step
    return f"{step}, part {trainer.fit_loop.total_batch_idx % parts + 1} of {parts}"


def _is_lost_connection(error: BaseException) -> bool:
    """Whether it is about another process rather than this one."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and _CONNECTION.search(str(error)) is not None


def _first_line(error: BaseException) -> str:
    line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {line}"[:200]


def _end_children(launcher: Any) -> None:
    """Processes that this one has started would outlive it."""
    if launcher is not None and hasattr(launcher, "kill"):
        launcher.kill(signal.SIGKILL)
