"""Expected efficiency of training on many GPUs: prints the tables of docs/scaling.md.

    python benchmarks/scaling.py count --data-root FOLDER     # collectives of two processes
    python benchmarks/scaling.py predict                      # efficiency of 8, 64, 512 GPUs
    python benchmarks/scaling.py check                        # the formula beside two processes here

`count` runs `benchmark step` on two gloo processes for each task's config with the tiny variant, on
drawn data, which it writes below the folder. `predict` needs neither GPUs nor counting again: what
was counted is the table STEPS. `check` trains a small network on two processes of this machine, and
measures in turns a step by itself, a step with all its collectives, and the collectives alone.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gmf_platform.benchmark.collectives import Collectives
from gmf_platform.cli.arguments import VerbParser, parse_arguments
from gmf_platform.distributed.sharding import sharding_units
from gmf_platform.models.backbones import GroupMixFormer
from gmf_platform.models.heads import UPerNet
from gmf_platform.models.losses import CrossEntropy
from gmf_platform.models.norm import set_norm_mode
from gmf_platform.models.segmenter import Segmenter

CONFIGS = {
    "seg": ("ade20k", "seg_ade20k", 150, ["--data.crop_size", "64", "--data.scale", "[256, 64]"]),
    "cls": ("imagenet", "cls_imagenet", 1000, ["--data.image_size", "64"]),
    "det": ("coco", "det_coco_retinanet", 80, ["--data.scale", "[128, 96]"]),
}
"""Layout of the drawn data, config, classes of the real data, and what makes images small: neither
gradients nor norms depend on their size."""


@dataclass(frozen=True)
class Step:
    """What a training step of a config sends, as `count` found it.

    Attributes:
        parameters: trained, with the real data's number of classes.
        collectives: that the step waits for: of norms, losses, the guard and Lightning.
        nbytes: that a process puts into them.
        units: modules that FSDP gathers one at a time.
    """

    parameters: int
    collectives: int
    nbytes: int
    units: int


@dataclass(frozen=True)
class Network:
    """Assumptions on machines; see docs/scaling.md for their sources.

    Attributes:
        gpus_per_node: joined by NVLink.
        inside: bytes a second that a GPU sends to others of its node, as collectives reach it.
        between: bytes a second that a node sends, likewise.
        latency_inside: seconds of a collective of few bytes in a node.
        latency_between: seconds added for each doubling of the nodes.
        overlap: share of the backward pass that hides communication.
        backward: share of a step's time that is backward.
        jitter: standard deviation of a GPU's step time, as a share of it.
    """

    gpus_per_node: int = 8
    inside: float = 0.8 * 450e9
    between: float = 0.8 * 50e9
    latency_inside: float = 20e-6
    latency_between: float = 10e-6
    overlap: float = 0.8
    backward: float = 2 / 3
    jitter: float = 0.01

    def nodes(self, gpus: int) -> int:
        """Machines that hold so many GPUs."""
        return math.ceil(gpus / self.gpus_per_node)

    def latency(self, gpus: int) -> float:
        """Seconds of a collective of few bytes."""
        return self.latency_inside + self.latency_between * math.log2(self.nodes(gpus))

    def gather(self, nbytes: float, gpus: int) -> float:
        """Seconds of an all-gather or reduce-scatter of ``nbytes`` in all, first inside nodes."""
        inside, nodes = min(gpus, self.gpus_per_node), self.nodes(gpus)
        within = (inside - 1) / inside * nbytes / self.inside
        return within + (nodes - 1) / nodes * nbytes / self.between

    def reduce(self, nbytes: float, gpus: int) -> float:
        """Seconds of an all-reduce: a reduce-scatter and an all-gather."""
        return 2 * self.gather(nbytes, gpus)


STEPS = {
    "seg": Step(parameters=39_071_748, collectives=91, nbytes=213_150, units=32),
    "cls": Step(parameters=10_949_152, collectives=68, nbytes=89_948, units=23),
    "det": Step(parameters=20_238_796, collectives=66, nbytes=85_158, units=37),
}
"""UperNet with 150 classes, the classifier with 1000, RetinaNet with 80; all GroupMixFormer-T."""

CONTROL = 5
"""Collectives of a step beside those of norms and losses: the guard's verdict, the agreement on
signals (two), Lightning's word on SIGTERM, and a part of what logging needs."""

GPUS = (8, 64, 512)
STEP_SECONDS = (0.05, 0.1, 0.2)


def ddp_seconds(step: Step, network: Network, seconds: float, gpus: int) -> float:
    """Seconds of a step under DDP: gradients in float32, all-reduced during the backward pass."""
    hidden = network.overlap * network.backward * seconds
    exposed = max(0.0, network.reduce(4 * step.parameters, gpus) - hidden)
    return seconds * slowest(network, gpus) + exposed + synchronised(step, network, gpus)


def fsdp_seconds(step: Step, network: Network, seconds: float, gpus: int) -> float:
    """Seconds of a step under FSDP2: two gathers in bfloat16, a reduce-scatter in float32."""
    hidden = network.overlap * seconds
    sent = 2 * network.gather(2 * step.parameters, gpus) + network.gather(4 * step.parameters, gpus)
    sent += 3 * step.units * network.latency(gpus)
    exposed = max(0.0, sent - hidden)
    return seconds * slowest(network, gpus) + exposed + synchronised(step, network, gpus)


def synchronised(step: Step, network: Network, gpus: int) -> float:
    """Seconds of the collectives that nothing hides: the next operation needs their result."""
    return step.collectives * network.latency(gpus) + network.gather(step.nbytes * gpus, gpus)


def slowest(network: Network, gpus: int) -> float:
    """The slowest of so many GPUs over their mean: about sqrt(2 ln n) deviations of a normal."""
    return 1 + network.jitter * math.sqrt(2 * math.log(gpus))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("count", "predict", "check"))
    parser.add_argument("--tasks", nargs="+", choices=list(CONFIGS), default=list(CONFIGS))
    parser.add_argument("--data-root", type=Path, help="of drawn data, for count")
    parser.add_argument("--rounds", type=int, default=8, help="of check")
    options = parser.parse_args()
    match options.what:
        case "count":
            with TemporaryDirectory() as folder:
                for task in options.tasks:
                    print(f"    {task!r}: {count(options.data_root or Path(folder), task)},")
        case "predict":
            predict()
        case "check":
            check(options.rounds)


def count(root: Path, task: str) -> Step:
    """Count a config's collectives on two processes, and its parameters with all classes."""
    from gmf_platform.cli.experiment import Experiment
    from gmf_platform.cli.main import main as gmf

    layout, config, classes, small = CONFIGS[task]
    if not (root / layout).is_dir():
        gmf(["sample-data", layout, str(root / layout), "--train", "12", "--val", "12"])
    words = ["--config", config, "--config", "backbone/tiny", "--data.root", str(root / layout)]
    words += ["--data.global_batch_size", "4", "--data.num_workers", "0", "--init_from", "none"]
    words += ["--trainer.accelerator", "cpu", *small]
    found = on_two([*words, "--config", "strategy/ddp"])
    named = [f for name, f in found.items() if name != "gradients"]
    print(f"# {task}: " + ", ".join(f"{n} {f['calls']:g}" for n, f in found.items()))
    task_of_real_size = Experiment(parse_arguments(VerbParser("fit", ""), words)).build_task(
        [str(label) for label in range(classes)]
    )
    model = task_of_real_size.model
    return Step(
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        collectives=round(sum(f["calls"] for f in named)),
        nbytes=round(sum(f["bytes"] for f in named)),
        units=len(sharding_units(model, 100_000)) + 2,  # as FSDP has it; norms, and what is left
    )


def on_two(words: list[str]) -> dict[str, dict[str, float]]:
    """Collectives of a step on two processes, by function."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "gmf_platform", "benchmark", "step", *words]
    command += ["--steps", "2", "--warmup", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise SystemExit(done.stderr[-3000:])
    found: dict[str, dict[str, float]] = json.loads(lines[-1])["collectives"]
    return found


def predict() -> None:
    """Print efficiencies, and what they would be without synchronised norms."""
    network = Network()
    heads = " | ".join(f"{gpus} GPUs, {1e3 * s:g} ms" for gpus in GPUS for s in STEP_SECONDS)
    print(f"| | {heads} |\n|---|" + "---|" * (len(GPUS) * len(STEP_SECONDS)))
    for task, step in STEPS.items():
        local = replace(step, collectives=CONTROL, nbytes=0)
        for name, seconds_of, sent in (
            (f"{task}, DDP", ddp_seconds, step),
            (f"{task}, FSDP2", fsdp_seconds, step),
            (f"{task}, DDP, norm: train", ddp_seconds, local),
        ):
            shares = [s / seconds_of(sent, network, s, n) for n in GPUS for s in STEP_SECONDS]
            print(f"| {name} | " + " | ".join(f"{share:.2f}" for share in shares) + " |")


def check(rounds: int) -> None:
    with TemporaryDirectory() as folder:
        mp.spawn(checked, args=(folder, rounds), nprocs=2)


def checked(rank: int, folder: str, rounds: int) -> None:
    """On two gloo processes of one thread each, with nothing hidden: both cores compute."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    network = Losses()
    ddp = DistributedDataParallel(network, broadcast_buffers=False)
    counts = Collectives()
    with counts.counting():
        train(ddp)
    shapes = {name: (n, counts.nbytes[name] // (4 * n)) for name, n in counts.calls.items()}
    size = sum(p.numel() for p in network.parameters())
    tasks: dict[str, Callable[[], None]] = {
        "alone": partial(train_alone, ddp),
        "together": partial(train, ddp),
        "collectives": partial(replay, shapes, size),
    }
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(-2, rounds):
        for name, task in tasks.items():
            dist.barrier()
            begun = time.perf_counter()
            task()
            if number >= 0:
                seconds[name].append(time.perf_counter() - begun)
    if rank == 0:
        print_check(seconds, shapes, size)
    dist.destroy_process_group()


def print_check(
    seconds: dict[str, list[float]], shapes: dict[str, tuple[int, int]], size: int
) -> None:
    calls = ", ".join(f"{n} {name} of {numel} numbers" for name, (n, numel) in shapes.items())
    print(f"a step: {calls}, {4 * size / 2**20:.1f} MiB of gradients")
    for how, figure in (("smallest", min), ("median", median)):
        alone, together, sent = (figure(seconds[name]) for name in seconds)
        print(
            f"{how:9} alone {1e3 * alone:.1f} ms, collectives {1e3 * sent:.1f} ms, together "
            f"{1e3 * together:.1f} ms; efficiency {alone / together:.2f}, by the formula "
            f"{alone / (alone + sent):.2f}"
        )


class Losses(nn.Module):
    """A small segmentation network with its loss, on a batch of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        backbone = GroupMixFormer("mobile", drop_path=0.0)
        self.model = Segmenter(backbone, UPerNet(backbone.channels, 150, channels=64), None)
        self.loss = CrossEntropy()
        self.images = torch.zeros(4, 3, 128, 128, dtype=torch.uint8).random_(256)
        self.labels = torch.zeros(4, 128, 128, dtype=torch.uint8).random_(150)

    def forward(self) -> Tensor:
        """The loss of the batch."""
        loss: Tensor = self.loss(self.model(self.images).logits, self.labels)
        return loss


def train(ddp: DistributedDataParallel) -> None:
    """A step without the optimiser's part, which sends nothing."""
    ddp.zero_grad()
    ddp().backward()


def train_alone(ddp: DistributedDataParallel) -> None:
    """The same by one process."""
    set_norm_mode(ddp, "train")
    with ddp.no_sync():
        train(ddp)
    set_norm_mode(ddp, "sync")


def replay(shapes: dict[str, tuple[int, int]], gradients: int) -> None:
    """What `train` sends, without what it computes."""
    for name, (calls, numel) in shapes.items():
        sent = torch.zeros(numel)
        for _ in range(calls):
            if name == "all_reduce":
                dist.all_reduce(sent)
            else:
                dist.all_gather_into_tensor(torch.empty(2 * numel), sent)
    dist.all_reduce(torch.zeros(gradients))


if __name__ == "__main__":
    main()
