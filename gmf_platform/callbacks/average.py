"""A moving average of the weights, which validation uses and checkpoints keep."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from gmf_platform.errors import UserError
from gmf_platform.optim import AveragedWeights

__all__ = ["MovingAverage"]


class MovingAverage(Callback):
    """Averages the weights over the optimiser steps of a run.

    Validation while training is that of the average. A checkpoint holds the weights, from which
    the run goes on, and the average, which every verb that takes weights prefers.

    Args:
        decay: share of the average that a step leaves as it was, as 0.9999; null: no average.
        warmup: begin with a smaller decay, so that short runs do not average their beginning.

    Raises:
        UserError: ``decay`` is not between 0 and 1.
    """

    def __init__(self, decay: float | None = None, warmup: bool = False) -> None:
        super().__init__()
        if decay is not None and not 0 < decay < 1:
            raise UserError(
                f"average.decay: {decay} is not between 0 and 1: 0.9999 is usual for 100 thousand "
                "steps and more, 0.999 for ten thousand; null switches the average off"
            )
        self._average = None if decay is None else AveragedWeights(decay, warmup=warmup)
        self._saved: dict[str, Any] | None = None
        self._step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be averaged.

        Raises:
            UserError: the parameters are in DeepSpeed's shards, which show nothing of them.
        """
        if self._average is not None and getattr(trainer.strategy, "zero_stage_3", False):
            raise UserError(
                "average.decay: ZeRO-3 keeps no weights that could be averaged: take "
                "strategy/fsdp or strategy/deepspeed_zero2, or set average.decay to null"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with a stopped run's average."""
        self._step = trainer.global_step
        self._take_up(pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Take in the weights, if the batch ended an optimiser step."""
        if self._average is not None and trainer.global_step != self._step:
            self._step = trainer.global_step
            self._average.update(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in the weights' place."""
        self._take_up(pl_module)
        if self._average is not None and self._average.updates:
            self._average.share_statistics(pl_module)  # all processes score the same weights
            self._average.put_into(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights back."""
        if self._average is not None:
            self._average.take_out(pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the average beside the weights."""
        if self._average is not None and self._average.updates:
            self._average.share_statistics(pl_module)
            checkpoint["average"] = self._average.state_dict()

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note a stopped run's average: the module may not be on its device yet, nor in shards."""
        self._saved = checkpoint.get("average")

    def _take_up(self, module: LightningModule) -> None:
        if self._average is not None and self._saved is not None:
            self._average.load_state_dict(self._saved, module)
        self._saved = None
