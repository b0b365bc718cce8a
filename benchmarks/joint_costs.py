"""What one backbone for several tasks saves in prediction, and what its training step holds.

    python benchmarks/joint_costs.py prediction [--size 512 384] [--runs 5] --config multitask ...
    python benchmarks/joint_costs.py memory --config multitask ... --data.tasks.cls.root DIR ...

``prediction``: of one image at one size, from random weights, on the CPU: all tasks together beside
the backbone alone plus each head alone (with what a task does behind its head), and beside each
task by itself. Interleaved; the least processor time of each counts.

``memory``: bytes that live at the fullest moment of a training step on one batch of each task,
weights and input left out: each task alone, the step as `fit` makes it, the same with the tasks'
gradients kept apart (a logged step, or PCGrad), and one backward pass of the sum of the losses.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from gmf_platform.benchmark.memory import LiveBytes, step_memory
from gmf_platform.benchmark.timing import interleaved
from gmf_platform.cli.arguments import VerbParser, parse_arguments
from gmf_platform.cli.experiment import Experiment
from gmf_platform.tasks import MultiTask

CPU = torch.device("cpu")
CLASSES = {"cls": 1000, "det": 80, "seg": 150}
"""Of ImageNet, COCO and ADE20K."""


def main() -> None:
    what, *words = sys.argv[1:] or [""]
    match what:
        case "prediction":
            prediction(words)
        case "memory":
            memory(words)
        case _:
            raise SystemExit(__doc__)


def prediction(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description="A joint prediction beside its parts.")
    parser.add_argument("--size", type=int, nargs=2, default=[512, 384], help="width and height")
    parser.add_argument("--runs", type=int, default=5)
    options, words = parser.parse_known_args(words)
    experiment = Experiment(parse_arguments(VerbParser("validate", ""), words))
    names = [f"{task}/{i}" for task, number in CLASSES.items() for i in range(number)]
    task = experiment.build_task(names).eval()
    assert isinstance(task, MultiTask)
    width, height = options.size
    with torch.inference_mode():
        seconds = interleaved(
            parts_of(task, one_image(height, width)),
            runs=options.runs,
            device=CPU,
            clock="processor",
        )
    least = {name: min(found) for name, found in seconds.items()}
    for name, value in least.items():
        print(f"{name:16}{1000 * value:9.1f} ms")
    heads = sum(value for name, value in least.items() if name.endswith("head"))
    singles = sum(value for name, value in least.items() if name.endswith("alone"))
    print(f"together / (backbone + heads) {least['together'] / (least['backbone'] + heads):.3f}")
    print(f"together / (each alone)       {least['together'] / singles:.3f}")


def one_image(height: int, width: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (1, 3, height, width), generator=generator, dtype=torch.uint8)
    size = torch.tensor([[height, width]])
    images = images.contiguous(memory_format=torch.channels_last)
    return {"images": images, "sizes": size, "original_sizes": size, "ids": ["one"]}


def parts_of(task: MultiTask, batch: dict[str, Any]) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    backbone = task.model.backbone
    first = next(iter(task.tasks))
    normalize = task.model.get_submodule(first).get_submodule("normalize")
    images = normalize(batch["images"], batch["sizes"])
    stored = Stored(backbone(images))

    def head(name: str) -> None:
        task.model.backbone = stored
        task.task(name).predict_step(batch, 0)
        task.model.backbone = backbone

    parts: dict[str, Callable[[], object]] = {"backbone": lambda: backbone(images)}
    parts |= {f"{name} head": partial(head, name) for name in task.tasks}
    parts["together"] = lambda: task.predict_step(batch, 0)
    alone = {name: part.predict_step for name, part in task.parts()}
    return parts | {f"{name} alone": partial(step, batch, 0) for name, step in alone.items()}


class Stored(nn.Module):
    """A backbone that has been run."""

    def __init__(self, features: Sequence[Tensor]) -> None:
        super().__init__()
        self.features = features

    def forward(self, images: Tensor) -> Sequence[Tensor]:
        """The same for any images."""
        return self.features


def memory(words: Sequence[str]) -> None:
    settings = ["--trainer.max_steps", "2", "--trainer.log_every_n_steps", "2"]
    settings += ["--trainer.accelerator", "cpu", "--data.num_workers", "0", "--init_from", "none"]
    experiment = Experiment(parse_arguments(VerbParser("fit", ""), [*words, *settings]))
    with TemporaryDirectory() as folder:
        experiment.build(Path(folder), quiet=True)
        experiment.plan_training()
        trainer = experiment.trainer
        trainer.limit_val_batches = 0
        trainer.callbacks.append(Peaks())  # type: ignore[attr-defined]
        trainer.fit(experiment.task, experiment.datamodule)


class Peaks(Callback):
    """Prints what is alive at the fullest moment of two steps, of which the second is logged."""

    def __init__(self) -> None:
        self.live = LiveBytes()

    def on_train_start(self, trainer: Trainer, task: LightningModule) -> None:
        """What the gradients of all parameters take."""
        show("gradients of all", sum(p.nbytes for p in task.parameters() if p.requires_grad))

    def on_train_batch_start(
        self, trainer: Trainer, task: LightningModule, batch: dict[str, Any], batch_idx: int
    ) -> None:
        """Before the first step each task alone, and all in one pass."""
        assert isinstance(task, MultiTask)
        if batch_idx == 0:
            tasks = batch["tasks"]
            groups = {f"{name} alone": {name: parts} for name, parts in tasks.items()}
            for title, group in (groups | {"sum of the losses": tasks}).items():
                show(title, peak(task, {"tasks": group}))
        self.live = LiveBytes()
        self.live.__enter__()

    def on_before_optimizer_step(
        self, trainer: Trainer, task: LightningModule, optimizer: Optimizer
    ) -> None:
        """The gradients are there."""
        self.live.__exit__(None, None, None)
        show("logged step" if trainer.global_step else "step", self.live.peak)


def peak(task: MultiTask, batch: dict[str, Any]) -> int:
    """Bytes at the fullest moment of one backward pass."""
    found = step_memory(lambda: torch.stack([*task.losses(batch).values()]).sum(), device=CPU)
    assert found is not None
    task.zero_grad()
    return found.peak


def show(name: str, value: int) -> None:
    print(f"{name:20}{value / 2**20:9.1f} MiB", flush=True)


if __name__ == "__main__":
    main()
