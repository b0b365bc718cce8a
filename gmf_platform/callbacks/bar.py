"""What a run does, as bars on a terminal."""

import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.text import Text

from gmf_platform.callbacks.progress import figures, headline, seconds_left
from gmf_platform.callbacks.throughput import Rates, Throughput

__all__ = ["Bar"]

_SECONDS = 0.5
"""Between two drawings, each of which takes a few milliseconds of the process that trains."""


class _Left(ProgressColumn):
    """The time to the end: what the run says, or what follows from the speed so far."""

    def render(self, task: Task) -> Text:
        seconds = task.fields.get("left", task.time_remaining)
        return Text("" if seconds is None else f"left {timedelta(seconds=round(seconds))}")


class _Display(Progress):
    """Bars, and a line of figures below them."""

    def __init__(self) -> None:
        self.figures = ""
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Left(),
            console=Console(),
            auto_refresh=False,  # its thread would hold a lock while loading processes are forked
        )
        self._drawn = 0.0

    def refresh_at_times(self) -> None:
        """Draw, unless that was done just now."""
        if time.monotonic() - self._drawn > _SECONDS:
            self._drawn = time.monotonic()
            self.refresh()

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.figures:
            yield Text(self.figures)


class Bar(Callback):
    """Shows how far training, evaluation and prediction are, with the figures of the last report.

    Below the bars are loss, score of the last validation, learning rate, speed, share of the time
    that data was waited for, and memory. Lines that are logged meanwhile go above them.

    Args:
        throughput: measures the speed.
    """

    def __init__(self, throughput: Throughput) -> None:
        super().__init__()
        self.throughput = throughput
        self._display: _Display | None = None
        self._rows: dict[str, TaskID] = {}
        self._reported: Rates | None = None
        self._score = ""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar of the run."""
        self._advance(trainer, type(pl_module).__name__, trainer.global_step, trainer.max_steps)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Go on; show what has been measured anew."""
        rates, more = self.throughput.rates, dict[str, float]()
        if rates is not None and rates is not self._reported:
            self._reported = rates
            more["left"] = seconds_left(trainer, rates)
            self._show_figures(trainer)
        title = type(pl_module).__name__
        self._advance(trainer, title, trainer.global_step, trainer.max_steps, **more)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show a bar of its own."""
        self._advance(trainer, _validation(trainer), 0, _validation_batches(trainer))

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Go on."""
        self._advance(
            trainer, _validation(trainer), _number(args) + 1, _validation_batches(trainer)
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take its bar away, and show the score."""
        if trainer.state.fn != "fit":
            return
        if self._display is not None:
            self._display.remove_task(self._rows.pop(_validation(trainer)))
        scores = headline(trainer, pl_module).items()
        self._score = next((f"{name} {value:.4f}" for name, value in scores), "")
        self._show_figures(trainer)

    def on_test_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Go on."""
        self._advance(trainer, "test", _number(args) + 1, _sum(trainer.num_test_batches))

    def on_predict_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Go on."""
        self._advance(trainer, "predict", _number(args) + 1, _sum(trainer.num_predict_batches))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the bars as they are."""
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Likewise."""
        self._close()

    def _show_figures(self, trainer: Trainer) -> None:
        if self._display is not None and self._reported is not None:
            self._display.figures = figures(trainer, self._reported, self._score)

    def _advance(
        self, trainer: Trainer, title: str, done: int, total: float | None, **more: Any
    ) -> None:
        if not trainer.is_global_zero:
            return
        if self._display is None:
            self._display = _Display()
            self._display.start()
        if title not in self._rows:
            self._rows[title] = self._display.add_task(title, total=total, completed=done)
        self._display.update(self._rows[title], completed=done, total=total, **more)
        self._display.refresh_at_times()

    def _close(self) -> None:
        if self._display is not None:
            self._display.stop()
        self._display, self._rows = None, {}


def _validation(trainer: Trainer) -> str:
    return "first check" if trainer.sanity_checking else "validation"


def _validation_batches(trainer: Trainer) -> float | None:
    checked = trainer.num_sanity_val_batches
    return _sum(checked if trainer.sanity_checking else trainer.num_val_batches)


def _number(args: Sequence[Any]) -> int:
    """The batch's number, of what Lightning says behind the trainer."""
    number: int = args[3]
    return number


def _sum(batches: Sequence[float]) -> float | None:
    """Batches of all loaders; None where one does not tell."""
    total = sum(batches)
    return None if total == float("inf") else total
