"""What is about to be trained and how, and what came of it: rows for people."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from datamodules.base import BaseDataModule
from gmf_platform.callbacks import RunCheckpoint, Throughput
from gmf_platform.cli.experiment import Experiment, is_first_process
from gmf_platform.cli.output import norm_advice
from gmf_platform.cli.sources import as_yaml
from gmf_platform.models.operations import multiply_adds
from gmf_platform.tasks import DetectionTask, MultiTask

__all__ = ["say_outcome", "say_plan"]

log = logging.getLogger(__name__)


def say_plan(experiment: Experiment) -> None:
    """Model, data, batch, schedule and devices of a run that is about to begin.

    Args:
        experiment: built, its training planned.
    """
    if not is_first_process():
        return
    plans = experiment.datamodule.plans(experiment.trainer.world_size)
    trainer, task = experiment.trainer, experiment.task
    parameters = sum(p.numel() for p in task.model.parameters())
    _row("model", f"{type(task).__name__}, {parameters / 1e6:.2f} M parameters")
    for text in _operations(experiment):
        _row("operations", text)
    _row("data", experiment.datamodule.describe())
    for name, one in plans.items():
        made = f"{one.per_device} per device x {one.world_size} devices x {one.accumulate}"
        _row("batch", f"{_of(name)}{one.global_batch_size} = {made} accumulated")
    _row("steps", f"{trainer.max_steps}, {trainer.precision}")
    if trainer.precision == "16-mixed":
        _row("", "the device has no bfloat16: float16, with the loss scaled")
    _row("schedule", _schedule(experiment))
    warmup = getattr(task.schedule, "warmup_steps", None) or 0
    if warmup >= trainer.max_steps:
        log.warning(
            "model.schedule.warmup_steps is %d: the run ends before its learning rate is reached",
            warmup,
        )
    if reference := task.lr_for_batch_size:
        factor = experiment.datamodule.global_batch_size / reference
        _row("lr scaling", f"x {factor:.4g} (model.lr_for_batch_size: {reference})")
    _row("strategy", _strategy(trainer))
    for name, plan in plans.items():
        if advice := norm_advice(task.norm, plan, data=f"data.tasks.{name}" if name else "data"):
            log.warning("%s%s", _of(name), advice)


def say_outcome(experiment: Experiment, checkpoint: Path, *, seconds: float) -> None:
    """Score, time, speed and checkpoint of a run that is finished.

    Args:
        experiment: trained.
        checkpoint: the best one, or the last where none is the best.
        seconds: that this start of the run took.
    """
    callbacks = experiment.trainer.callbacks  # type: ignore[attr-defined]
    kept = next(one for one in callbacks if isinstance(one, RunCheckpoint))
    if kept.best_score is not None:
        _row("best", f"{kept.monitor} {kept.best_score:.4f} at step {kept.best_step}")
    speed = next(one for one in callbacks if isinstance(one, Throughput)).mean
    seen = "" if speed is None else f", {speed:.1f} images/s in training"
    _row("time", f"{seconds / 3600:.2f} hours{seen}")
    _row("checkpoint", str(checkpoint))


def _row(title: str, text: str) -> None:
    log.info("%-12s %s", title, text)


def _of(name: str) -> str:
    return f"{name}: " if name else ""


def _operations(experiment: Experiment) -> Iterator[str]:
    """GFLOPs of the forward pass at the training size of each task; none where it is not known."""
    data, task = experiment.datamodule, experiment.task
    # What a detection head does depends on what it finds.
    part = "backbone" if isinstance(task, DetectionTask | MultiTask) else ""
    tasks: Mapping[str, BaseDataModule] = getattr(data, "tasks", {"": data})
    for name, one in tasks.items():
        size = one.training_size
        count = size and _counted(task.model, size, part=part)
        if size and count:
            where = " in the backbone" if part else ""
            image = f"an image of {size[0]} x {size[1]}"
            yield f"{_of(name)}{count / 1e9:.2f} GFLOPs{where} for {image}, forward"


def _counted(model: nn.Module, size: tuple[int, int], *, part: str) -> int | None:
    try:
        return multiply_adds(model, size, part=part)
    except Exception as error:  # noqa: BLE001 - a user's model may look at values, and there are none
        log.debug("operations are not counted: %s", error)
        return None


def _schedule(experiment: Experiment) -> str:
    """Optimiser, its learning rate, and the schedule with its numbers."""
    model: dict[str, Any] = yaml.safe_load(experiment.yaml)["model"]["init_args"]
    optimizer: dict[str, Any] = model.get("optimizer") or {}
    name = optimizer.get("class_path", "AdamW").rpartition(".")[2]
    rate = optimizer.get("init_args", {}).get("lr")
    schedule = experiment.task.schedule
    plain = (str, int, float, list, tuple)
    numbers = {k: as_yaml(v) for k, v in vars(schedule).items() if isinstance(v, plain)}
    shown = ", ".join(f"{key} {value}" for key, value in numbers.items())
    said = f"{name}{'' if rate is None else f', lr {rate:g}'}, {type(schedule).__name__}"
    return f"{said} ({shown})" if shown else said


def _strategy(trainer: Any) -> str:
    """How the model is spread, over how many devices of which kind."""
    kind = trainer.strategy.root_device.type
    if trainer.world_size == 1:
        return f"one device ({kind})"
    nodes = f" on {trainer.num_nodes} nodes" if trainer.num_nodes > 1 else ""
    return f"{type(trainer.strategy).__name__}, {trainer.world_size} devices ({kind}){nodes}"
