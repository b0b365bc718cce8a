"""One plain line every so often: for logs, and for a terminal that is none."""

import logging
import os
import sys
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from gmf_platform.callbacks.throughput import Rates, Throughput

__all__ = ["STEPS", "Progress", "figures", "headline", "seconds_left"]

log = logging.getLogger(__name__)

STEPS = f"{__name__}.steps"
"""The logger of the lines that a bar stands for on a terminal."""


class Progress(Callback):
    """Logs a line every ``log_every_n_steps`` steps, and the scores of each validation.

    The line has loss, learning rate, speed, memory and the time to the end.

    Args:
        throughput: measures the speed.
    """

    def __init__(self, throughput: Throughput) -> None:
        super().__init__()
        self.throughput = throughput
        self._reported: object = None

    @staticmethod
    def is_bar_wanted() -> bool:
        """Whether standard output is a terminal: a bar's control codes spoil a log file."""
        return sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Report when the speed has been measured anew."""
        rates = self.throughput.rates
        if rates is None or rates is self._reported or not trainer.is_global_zero:
            return
        self._reported = rates
        left = timedelta(seconds=round(seconds_left(trainer, rates)))
        logging.getLogger(STEPS).info(
            "step %d/%d  %s  left %s",
            trainer.global_step,
            trainer.max_steps,
            figures(trainer, rates),
            left,
        )

    def on_predict_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Report every ``log_every_n_steps`` batches."""
        done = args[3] + 1  # of what Lightning says behind the trainer
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if done % every == 0 and trainer.is_global_zero:
            total = sum(trainer.num_predict_batches)
            logging.getLogger(STEPS).info("predict  batch %d/%d", done, total)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report a run's scores, or those that the task has in front."""
        in_run = trainer.global_step > 0  # the last one may be made up for after the training loop
        if trainer.sanity_checking or not in_run or not trainer.is_global_zero:
            return
        scores = headline(trainer, pl_module)
        named = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        log.info("validation at step %d  %s", trainer.global_step, named)


def figures(trainer: Trainer, rates: Rates, score: str = "") -> str:
    """What was last measured: loss, a score, learning rate, speed, data-wait share and memory."""
    loss = trainer.callback_metrics.get("train/loss")
    parts = [
        f"loss {'-' if loss is None else f'{float(loss):.4f}'}",
        score,
        f"lr {rates.learning_rate:.2e}",
        f"{rates.images_per_second:.1f} images/s",
        f"data {100 * rates.data_wait:.0f} %",
        f"memory {rates.memory_gib:.1f} GiB",
    ]
    return "  ".join(filter(None, parts))


def seconds_left(trainer: Trainer, rates: Rates) -> float:
    """To the end of training at the speed of the last report, without validations."""
    return (trainer.max_steps - trainer.global_step) * rates.seconds_per_step


def headline(trainer: Trainer, task: LightningModule) -> dict[str, float]:
    """The scores of the last validation, or those that the task has in front, in its order."""
    scores = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
    first = [f"val/{name}" for name in getattr(task, "headline", ())]
    return {name: scores[name] for name in first if name in scores} or scores
