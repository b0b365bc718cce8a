"""What all tasks share: optimiser, schedule, compile, memory format, exact randomness."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Self, TypeVar

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from gmf_platform.distributed import FSDP, ZeRO
from gmf_platform.errors import UserError
from gmf_platform.evaluation.class_report import ClassReport
from gmf_platform.evaluation.drawing import Compared
from gmf_platform.evaluation.per_sample import Row
from gmf_platform.models.norm import NormMode, set_norm_mode
from gmf_platform.optim import (
    Polynomial,
    Schedule,
    freeze_stages,
    parameter_groups,
    scale_learning_rates,
)
from gmf_platform.ranges import NonNegativeInt, PositiveInt

__all__ = ["BaseTask", "HeadFactory", "NormMode", "unpadded"]

HeadFactory = Callable[[Sequence[int], int], nn.Module]
"""Makes a head from the backbone's channels and the number of classes."""

ModelT = TypeVar("ModelT", bound=nn.Module)


def _free_gradients(optimizer: Optimizer, *_: Any) -> None:
    """Leave their memory to the next forward pass; Lightning would free them behind it."""
    optimizer.zero_grad()


def unpadded(batch: Mapping[str, Any], index: int) -> NDArray[np.uint8]:
    """An image of a batch as the network saw it, (H, W, 3), without its padding."""
    height, width = batch["sizes"][index].tolist()
    image = batch["images"][index, :, :height, :width].permute(1, 2, 0)
    return np.ascontiguousarray(image.cpu().numpy())


class BaseTask(LightningModule):
    """Base of all tasks.

    A subclass reads top to bottom in this order: ``__init__``, ``build_model``, ``build_losses``,
    ``build_metrics``, ``losses``, ``begin_scores``, ``update_scores``, ``compute_scores``,
    ``predict_step``. None of these asks the trainer, so that `MultiTask` can call them too.

    Args:
        class_names: in label order; they travel in the checkpoint.
        optimizer: makes the optimiser from parameter groups.
        schedule: of the learning rate over the run's optimiser steps; None: Polynomial.
        lr_for_batch_size: the global batch that the optimiser's learning rate is meant for;
            it is scaled by ``data.global_batch_size`` over this. None: not scaled.
        decay_norms_and_biases: weight decay is for these parameters too.
        layer_decay: learning rate of a layer of the backbone over that of the layer behind it;
            the last one's over the head's. None: the same for all.
        lr_factors: factors of the learning rate by part of the model, ``{backbone: 0.1}``, or by
            the beginning of parameters' names.
        frozen_stages: stages of the backbone, with its stem, that are not trained, from the front:
            0 trains all, 4 the head alone.
        norm: batch norms of the backbone: synchronised over processes, per process, or frozen.
        compile: run the model through torch.compile.
        seed: of everything random on the device, with the step and the process.

    Attributes:
        config: the resolved one (YAML) that this is built from, for checkpoints; None: unknown.
        batch_losses: of the training batch at hand, by name; ``loss`` is their sum.
        headline: scores to be named after each validation of a run; none: all of them.
    """

    headline: Sequence[str] = ()
    model: nn.Module

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        lr_for_batch_size: PositiveInt | None = None,
        decay_norms_and_biases: bool = False,
        layer_decay: float | None = None,
        lr_factors: dict[str, float] | None = None,
        frozen_stages: NonNegativeInt = 0,
        norm: NormMode = "sync",
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        # A process may get no image to predict: nothing is repeated to fill it up.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.class_names = list(class_names)
        self.optimizer, self.schedule = optimizer, schedule or Polynomial()
        self.lr_for_batch_size = lr_for_batch_size
        self.decay_norms_and_biases = decay_norms_and_biases
        self.layer_decay, self.lr_factors = layer_decay, lr_factors
        self.frozen_stages, self._frozen = frozen_stages, list[nn.Module]()
        self.norm, self.compiled, self.seed = norm, compile, seed
        self.config: str | None = None
        self._scored: tuple[int, dict[str, float]] = (-1, {})
        self.batch_losses: dict[str, Tensor] = {}
        self._step_losses: dict[str, Tensor | float] = {}

    def prepared(self, model: ModelT) -> ModelT:
        """Give a model its memory format, norm mode, frozen stages and, if asked for, its compiler.

        ``compile`` works in place, so that checkpoint keys stay as they are.

        Raises:
            UserError: the backbone has not as many stages as are to be frozen.
        """
        model = model.to(memory_format=torch.channels_last)
        backbone = model.get_submodule("backbone")
        set_norm_mode(backbone, self.norm)
        self._frozen = freeze_stages(backbone, self.frozen_stages)
        if self.compiled:
            model.compile()
        return model

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all but frozen stages, which stay as in evaluation."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def configure_model(self) -> None:
        """Let the strategy spread the model over the processes."""
        match self.trainer.strategy:
            case FSDP() | ZeRO() as strategy:
                strategy.prepare(self.model)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimiser over groups of parameters, schedule by optimiser step.

        Raises:
            UserError: a learning-rate option that does not fit the model or the data, or a value
                that the optimiser refuses.
        """
        groups = parameter_groups(
            self.model,
            decay_norms_and_biases=self.decay_norms_and_biases,
            layer_decay=self.layer_decay,
            lr_factors=self.lr_factors,
        )
        try:
            optimizer = self.optimizer(groups)
        except ValueError as error:
            raise UserError(f"model.optimizer: {error}") from None
        scale_learning_rates(optimizer.param_groups, self.lr_factor())
        if not isinstance(self.trainer.strategy, ZeRO):  # whose gradients are in its own buffers
            optimizer.register_step_post_hook(_free_gradients)
        total = int(self.trainer.estimated_stepping_batches)
        data = getattr(self.trainer, "datamodule", None)
        epoch = None if data is None else data.steps_per_epoch()

        def factor(step: int) -> float:
            return self.schedule.factor(step, total, steps_per_epoch=epoch)

        scheduler = LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def lr_factor(self) -> float:
        """What the configured learning rate is multiplied by, from ``lr_for_batch_size``."""
        if self.lr_for_batch_size is None:
            return 1.0
        batch: int = self.trainer.datamodule.global_batch_size  # type: ignore[attr-defined]
        return batch / self.lr_for_batch_size

    def on_train_start(self) -> None:
        """Take the learning rates of the schedule as it is now.

        A run that goes on for longer than it was meant to was saved with those of its first end.
        """
        scheduler = self.lr_schedulers()
        if not isinstance(scheduler, LambdaLR):  # a single step that is made again has none
            return
        rates = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        for group, (rate, factor) in zip(scheduler.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor(scheduler.last_epoch)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make what is random on the device a function of (seed, batch, process).

        A resumed run then draws what the run that was stopped would have drawn. Lightning logs
        by a count of its own, which may be one short where a finished run goes on.
        """
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.trainer.global_step
        torch.manual_seed(self.batch_seed())

    def batch_seed(self) -> int:
        """What the randomness of the training batch at hand is seeded with."""
        number = self.trainer.fit_loop.total_batch_idx
        return (self.seed * 1_000_003 + number) * 1_009 + self.global_rank

    @property
    def main_score(self) -> str:
        """Name of the score that says most."""
        return self.headline[0]

    @abstractmethod
    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Losses of a training batch by name; their sum is what is trained on."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Sum of a batch's losses."""
        return self.total_loss(self.losses(batch))

    def total_loss(self, losses: dict[str, Tensor]) -> Tensor:
        """Sum the losses, and log each by name under ``train/``.

        What is logged is the mean over the micro-batches of an optimiser step, and over processes.
        """
        total = torch.stack(list(losses.values())).sum()
        parts = self.trainer.accumulate_grad_batches
        if self.trainer.fit_loop.total_batch_idx % parts == 0:
            self._step_losses = {}
        self.batch_losses = {n: x.detach() for n, x in (losses | {"loss": total}).items()}
        for name, loss in self.batch_losses.items():
            before = self._step_losses.get(f"train/{name}", 0.0)
            self._step_losses[f"train/{name}"] = before + loss / parts
        self.log_dict(self._over_processes(self._step_losses), batch_size=1)
        return total

    def begin_scores(self, data: Any, split: str) -> None:
        """Begin to count.

        Args:
            data: the datamodule.
            split: the one of it that is about to be scored.
        """

    @abstractmethod
    def update_scores(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Predict and count an evaluation batch; returns what `compared` draws."""

    @abstractmethod
    def compute_scores(self) -> dict[str, float]:
        """Scores by name over what all processes have counted; the next count begins anew."""

    def on_validation_epoch_start(self) -> None:
        """Begin to count."""
        self.begin_scores(getattr(self.trainer, "datamodule", None), "validation")

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Predict and count a batch."""
        return self.update_scores(batch)

    def on_validation_epoch_end(self) -> None:
        """Score the split."""
        self.log_scores("val")

    def on_test_epoch_start(self) -> None:
        """Begin to count."""
        data = getattr(self.trainer, "datamodule", None)
        self.begin_scores(data, getattr(data, "test_split", "validation"))

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """As in validation."""
        return self.update_scores(batch)

    def on_test_epoch_end(self) -> None:
        """Score the split."""
        self.log_scores("test")

    def log_scores(self, split: str) -> None:
        """Compute the scores and log them under ``val/`` or ``test/``."""
        scores = {f"{split}/{name}": x for name, x in self.compute_scores().items()}
        self.log_dict(scores)
        if split == "val" and not self.trainer.sanity_checking:
            self._scored = self.global_step, scores

    @abstractmethod
    def compared(self, batch: dict[str, Any], outputs: Any, index: int) -> Compared:
        """An image of a validation batch beside its truth and what was predicted.

        Args:
            batch: of validation.
            outputs: what ``update_scores`` returned for it; ``len(batch["ids"])`` images.
            index: of the image in the batch.
        """

    def sample_scores(self, batch: dict[str, Any], outputs: Any, index: int) -> Row:
        """Scores of one image, for per_sample.csv; none where a task does not give them.

        Args:
            batch: of validation or test.
            outputs: what ``validation_step`` or ``test_step`` returned for it.
            index: of the image in the batch.
        """
        return {}

    def is_logged(self) -> bool:
        """Whether what is logged with the training batch at hand is written."""
        trainer = self.trainer
        step_ends = (trainer.fit_loop.total_batch_idx + 1) % trainer.accumulate_grad_batches == 0
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        return step_ends and (trainer.global_step + 1) % every == 0

    def _over_processes(self, losses: dict[str, Any]) -> dict[str, Any]:
        """The means over processes, on the steps that are logged."""
        return self._means(losses) if self.is_logged() else losses

    def _means(self, losses: dict[str, Any]) -> dict[str, Any]:
        """The means over processes, by one collective."""
        if self._trainer is None or self._trainer.world_size == 1 or not losses:
            return losses
        stacked = torch.stack(list(losses.values()))
        return dict(
            zip(losses, self._trainer.strategy.reduce(stacked, reduce_op="mean"), strict=True)
        )

    def pictured(
        self, batch: dict[str, Any], outputs: Any
    ) -> Iterator[tuple[str, "BaseTask", dict[str, Any], Any]]:
        """What of a validation batch can be drawn: name of the sheet, task, batch and outputs."""
        yield "", self, batch, outputs

    def parts(self) -> Iterator[tuple[str, "BaseTask"]]:
        """The single tasks by name; of a single task itself, without a name."""
        yield "", self

    def class_report(self) -> ClassReport | None:
        """Scores of the classes in the last evaluation, for charts; None where there are none."""
        return None

    def evaluation_settings(self) -> dict[str, Any]:
        """What a score depends on beside the weights, for its line in metrics.jsonl."""
        return {}

    def score_table(self) -> str:
        """Scores by class of the last evaluation, for people to read."""
        return ""

    def _check_classes(self, trained: list[str] | None) -> None:
        """Refuse to go on where labels have changed their meaning, as when a folder was renamed."""
        if trained in (None, self.class_names):
            return
        both = zip_longest(trained or [], self.class_names)
        label, (before, now) = next((i, pair) for i, pair in enumerate(both) if len({*pair}) > 1)
        raise UserError(
            f"the run was trained on other classes than the data has: label {label} is {before!r} "
            f"there and {now!r} here. Name the classes in the order of training (data.classes), or "
            "begin another run"
        )

    def score_files(self) -> dict[str, str]:
        """Tables of the last evaluation that are kept beside the scores: file name -> content."""
        return {}

    def facts(self, data: Any) -> dict[str, Any]:
        """What a model needs beyond its tensors, in plain types.

        Args:
            data: the datamodule; None where there is none.
        """
        return {"class_names": self.class_names}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what a model needs beyond its tensors, and how well it did."""
        facts = self.facts(getattr(self._trainer, "datamodule", None))
        if self.config is not None:
            facts["config"] = self.config
        step, scores = self._scored
        if step == self.global_step:
            facts["scores"] = scores
        checkpoint["gmf_platform"] = facts

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let a run go on with another accumulation, as it must on another number of devices.

        Lightning counts batches. A run is one epoch to it and is saved between steps, so the
        batches done are the steps done times the accumulation of now.

        Raises:
            UserError: labels meant other classes in the run than they do in the data.
        """
        fit_loop = checkpoint.get("loops", {}).get("fit_loop")
        if fit_loop is None or self._trainer is None:
            return
        self._check_classes(checkpoint.get("gmf_platform", {}).get("class_names"))
        done = checkpoint["global_step"] * self.trainer.accumulate_grad_batches
        progress = fit_loop["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            unfinished = counts["ready"] - counts["completed"]  # the one whose end saved the run
            counts |= dict.fromkeys(("ready", "started", "processed"), done)
            counts["completed"] = done - unfinished
