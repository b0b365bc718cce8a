"""One plain line every so often: for logs, and for a terminal that is none."""

import logging
import sys
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from gmf_platform.callbacks.throughput import Throughput

__all__ = ["Progress"]

log = logging.getLogger(__name__)


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
        return sys.stdout.isatty()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Report when the speed has been measured anew."""
        rates = self.throughput.rates
        if rates is None or rates is self._reported or not trainer.is_global_zero:
            return
        self._reported = rates
        loss = trainer.callback_metrics.get("train/loss")
        left = (trainer.max_steps - trainer.global_step) * rates.seconds_per_step
        log.info(
            "step %d/%d  loss %s  lr %.2e  %.1f images/s  data %.0f %%  memory %.1f GiB  left %s",
            trainer.global_step,
            trainer.max_steps,
            "-" if loss is None else f"{float(loss):.4f}",
            rates.learning_rate,
            rates.images_per_second,
            100 * rates.data_wait,
            rates.memory_gib,
            timedelta(seconds=round(left)),
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report a run's scores, or those that the task has in front."""
        in_run = trainer.global_step > 0  # the last one may be made up for after the training loop
        if trainer.sanity_checking or not in_run or not trainer.is_global_zero:
            return
        scores = {k: v for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        first = {f"val/{name}" for name in getattr(pl_module, "headline", ())}
        scores = {k: v for k, v in scores.items() if k in first} or scores
        named = "  ".join(f"{name} {float(value):.4f}" for name, value in scores.items())
        log.info("validation at step %d  %s", trainer.global_step, named)
