"""What a run will take: disk, shared memory, time."""

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from gmf_platform.cli.experiment import Experiment
from gmf_platform.cli.run_directory import RunDirectory

__all__ = ["batch_bytes", "batch_tensors", "checkpoint_bytes", "seconds_left", "trained_bytes"]

_PROGRESS = re.compile(r"step \d+/\d+  .*  left (?:(\d+) days?, )?(\d+):(\d+):(\d+)$", re.MULTILINE)


def trained_bytes(experiment: Experiment) -> int:
    """Of the parameters that have gradients."""
    return sum(p.nbytes for p in experiment.task.parameters() if p.requires_grad)


def checkpoint_bytes(experiment: Experiment) -> int:
    """Of weights, buffers, moments and, if there is one, the moving average."""
    state = experiment.task.state_dict().values()
    weights = sum(tensor.nbytes for tensor in state)
    copies = 2 if experiment.config.average.decay else 1
    return copies * weights + _moments(experiment.task.optimizer) * trained_bytes(experiment)


def _moments(make: Callable[[Any], Optimizer]) -> int:
    """How many numbers an optimiser keeps for each parameter: tried out on a small one."""
    weight = nn.Parameter(torch.ones(2, 3))
    optimizer = make([{"params": [weight]}])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    kept = optimizer.state[weight].values()
    return sum(isinstance(value, torch.Tensor) and value.shape == weight.shape for value in kept)


def batch_bytes(experiment: Experiment) -> int | None:
    """Of a device's training batch: images, and masks of labels; None where sizes are not set."""
    data = experiment.datamodule
    match vars(data):
        case {"crop_size": int(side)}:
            pixels, channels = side * side, 4
        case {"image_size": int(side)}:
            pixels, channels = side * side, 3
        case {"long": int(long), "short": int(short)}:
            pixels, channels = long * short, 3
        case _:
            return None
    return _per_device(experiment) * pixels * channels


def batch_tensors(experiment: Experiment) -> int:
    """How many tensors a device's training batch is made of, at most: objects have four."""
    return 8 + 4 * _per_device(experiment)


def _per_device(experiment: Experiment) -> int:
    return experiment.datamodule.plan(experiment.trainer.world_size).per_device


def seconds_left(folder: RunDirectory) -> float | None:
    """To the run's end, as it said itself when it was last alive; None if it never did."""
    text = folder.log.read_text() if folder.log.is_file() else ""
    said = _PROGRESS.findall(text)
    if not said:
        return None
    days, hours, minutes, seconds = (int(number or 0) for number in said[-1])
    return timedelta(days, seconds, minutes=minutes, hours=hours).total_seconds()
