"""benchmark step: where the time of a training step goes."""

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from gmf_platform.cli.arguments import Arguments, VerbParser, parse_arguments, positive
from gmf_platform.cli.precheck import check_data
from gmf_platform.cli.sources import Sources
from gmf_platform.errors import ExitCode

if TYPE_CHECKING:
    from gmf_platform.benchmark.bare import Pair
    from gmf_platform.benchmark.phases import StepWatch
    from gmf_platform.cli.experiment import Experiment

__all__ = ["run"]


def run(verb: str, argv: Sequence[str]) -> int:
    """Run the verb; see ``benchmark step --help``."""
    arguments = parse_arguments(_parser(verb), argv)
    check_data(Sources(arguments))
    options = arguments.options

    from gmf_platform.benchmark.timing import machine
    from gmf_platform.cli.output import log_to

    log_to(None)
    with TemporaryDirectory() as folder:
        experiment = _prepared(arguments, Path(folder), steps=options.warmup + options.steps)
        watch = _watch(experiment, options)
    if not experiment.trainer.is_global_zero:
        return ExitCode.DONE
    world_size = experiment.trainer.world_size
    report: dict[str, Any] = {
        "verb": verb,
        "command": shlex.join(["python", "-m", "gmf_platform", *verb.split(), *argv]),
        "machine": machine(experiment.trainer.strategy.root_device),
        "processes": world_size,
        "clock": options.clock,
        "precision": str(experiment.trainer.precision),
        "seconds": watch.times.mean(),
    }
    _print_phases(experiment, watch)
    if world_size > 1:
        report["collectives"] = _print_collectives(experiment, watch)
        print("against a bare loop: measured with one process alone")
    else:
        with TemporaryDirectory() as folder:
            experiment = _prepared(arguments, Path(folder), steps=options.warmup + options.steps)
            pairs = _beside_bare(experiment, options)
        report["overhead"] = _print_overhead(experiment, pairs)
    print(json.dumps(report))
    return ExitCode.DONE


def _parser(verb: str) -> VerbParser:
    parser = VerbParser(
        verb,
        "Where the time of a training step goes: the config's model on its data, from random "
        "weights; no run is made. A second pass compares with a bare PyTorch loop.",
    )
    parser.add_argument("--steps", type=positive, default=20, help="optimiser steps timed (20)")
    parser.add_argument("--warmup", type=positive, default=3, help="before them (3)")
    parser.add_argument(
        "--clock",
        choices=("wall", "processor"),
        default="wall",
        help="of the table; processor: what this process was given, of use on a busy CPU",
    )
    return parser


def _prepared(arguments: Arguments, folder: Path, *, steps: int) -> "Experiment":
    """The experiment as `fit` has it, for so many steps without validation."""
    from gmf_platform.callbacks import RunLogger
    from gmf_platform.cli.device import prepare_device
    from gmf_platform.cli.experiment import Experiment

    experiment = Experiment(arguments)
    prepare_device(experiment.config.trainer.accelerator)
    experiment.build(folder, logger=RunLogger(folder))
    experiment.plan_training()
    trainer = experiment.trainer
    trainer.fit_loop.epoch_loop.max_steps = steps + 1  # a step's end is the next one's beginning
    trainer.limit_val_batches = 0
    # Both kinds of steps are wanted among few: they are weighted as the config logs.
    trainer.log_every_n_steps = max(2, steps // 4)  # type: ignore[attr-defined]
    return experiment


def _watch(experiment: "Experiment", options: argparse.Namespace) -> "StepWatch":
    from gmf_platform.benchmark.phases import COLLECTIVES, PhaseClock, StepWatch

    trainer = experiment.trainer
    clock = PhaseClock(trainer.strategy.root_device, clock=options.clock)
    every = experiment.config.trainer.log_every_n_steps or 50
    watch = StepWatch(clock, warmup=options.warmup, log_every=every)
    trainer.profiler = clock  # type: ignore[attr-defined]
    trainer.callbacks.insert(0, watch)  # type: ignore[attr-defined]
    with watch.collectives.counting(lambda function: clock.timed(function, COLLECTIVES)):
        _fit(experiment)
    return watch


def _beside_bare(experiment: "Experiment", options: argparse.Namespace) -> "list[Pair]":
    from gmf_platform.benchmark.bare import Alternating

    data, trainer = experiment.datamodule, experiment.trainer
    loader = data.train_dataloader
    found: list[Alternating] = []

    def alternating() -> Alternating:
        found.append(Alternating(loader(), trainer, options.warmup))
        return found[-1]

    data.train_dataloader = alternating  # type: ignore[method-assign,assignment]
    _fit(experiment)
    found[0].loader.close()
    return found[0].pairs


def _fit(experiment: "Experiment") -> None:
    from gmf_platform.cli.output import advising_on_memory

    with advising_on_memory(experiment):
        experiment.trainer.fit(experiment.task, experiment.datamodule)


def _print_phases(experiment: "Experiment", watch: "StepWatch") -> None:
    from gmf_platform.benchmark.phases import COLLECTIVES, PHASES

    trainer, plan = experiment.trainer, experiment.datamodule.plan(experiment.trainer.world_size)
    seconds = watch.times.mean()
    total = sum(seconds.values())
    print(
        f"batch {plan.global_batch_size} = {plan.per_device} x {plan.world_size} devices x "
        f"{plan.accumulate} accumulated, {trainer.precision}, {trainer.strategy.root_device.type}\n"
    )
    print(f"{'':28}{'ms a step':>10}  {'share':>7}")
    own = dict.fromkeys([*PHASES.values(), COLLECTIVES])
    for name in own:
        if name in seconds:
            _print_row(name, seconds[name], total)
    platform = {name: spent for name, spent in seconds.items() if name not in own}
    _print_row("platform", sum(platform.values()), total)
    for name, spent in sorted(platform.items(), key=lambda item: -item[1]):
        _print_row(f"  {name}", spent, total)
    _print_row("all", total, total)
    print(f"{'images a second':28}{plan.global_batch_size / total:10.1f}\n")


def _print_row(name: str, seconds: float, total: float) -> None:
    print(f"{name:28}{1e3 * seconds:10.2f}  {seconds / total:7.2%}")


def _print_collectives(
    experiment: "Experiment", watch: "StepWatch"
) -> dict[str, Mapping[str, float]]:
    """What a step asks of torch.distributed, and the gradients, which DDP sums by itself."""
    found: dict[str, Mapping[str, float]] = dict(watch.collectives_of_step)
    for name, of_step in found.items():
        print(f"{name:28}{of_step['calls']:10.1f} a step, {of_step['bytes'] / 1024:.1f} KiB")
    trained = [p for p in experiment.task.parameters() if p.requires_grad]
    size = sum(p.numel() * p.element_size() for p in trained)
    print(f"{'gradients':28}{size / 2**20:10.1f} MiB a step")
    return found | {"gradients": {"calls": 1, "bytes": size}}


def _print_overhead(experiment: "Experiment", pairs: "Sequence[Pair]") -> dict[str, Any]:
    """The trainer's step beside a bare loop's, by both clocks."""
    from gmf_platform.benchmark.bare import Overhead

    every = experiment.config.trainer.log_every_n_steps or 50
    on_cpu = experiment.trainer.strategy.root_device.type == "cpu"
    found: dict[str, Overhead] = {}
    for clock in ("wall", "processor") if on_cpu else ("wall",):
        found[clock] = Overhead.of(pairs, log_every=every, processor=clock == "processor")
        over = found[clock]
        print(
            f"bare loop, {clock + ' time':17}{1e3 * over.bare:10.2f} ms; the trainer's step takes "
            f"{1e3 * over.added:+.2f} ms, {over.share:+.2%}"
        )
    return {clock: asdict(over) for clock, over in found.items()}
