"""benchmark data: how fast training images are loaded."""

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gmf_platform.cli.arguments import VerbParser, parse_arguments, positive
from gmf_platform.cli.precheck import check_data
from gmf_platform.cli.sources import Sources
from gmf_platform.errors import ExitCode

if TYPE_CHECKING:
    from gmf_platform.benchmark.loading import Loading, OneWorker

__all__ = ["run"]

_LEAST_SHARE = 0.01


def run(verb: str, argv: Sequence[str]) -> int:
    """Run the verb; see ``benchmark data --help``."""
    arguments = parse_arguments(_parser(verb), argv)
    check_data(Sources(arguments))
    options = arguments.options

    import torch

    from gmf_platform.benchmark.loading import all_workers, one_worker, waits
    from gmf_platform.benchmark.timing import machine
    from gmf_platform.cli.experiment import Experiment

    data = Experiment(arguments).build_data()
    data.setup("fit")
    alone = one_worker(data, images=options.images)
    _print_alone(alone)
    timed = {"batches": options.batches, "warmup": options.warmup}
    loading = all_workers(data, **timed)
    _print_loading(loading)
    report: dict[str, Any] = {
        "verb": verb,
        "command": shlex.join(["python", "-m", "gmf_platform", *verb.split(), *argv]),
        "machine": machine(torch.device("cpu")),
        "one_worker": asdict(alone),
        "all_workers": asdict(loading),
    }
    if options.step_seconds is not None:
        found = waits(data, step_seconds=options.step_seconds, **timed)
        print(f"steps of {found.step_seconds:g} s wait for data {found.share:.1%} of the time")
        report["waits"] = asdict(found)
    print(json.dumps(report))
    return ExitCode.DONE


def _parser(verb: str) -> VerbParser:
    parser = VerbParser(
        verb, "How fast the config's training images are loaded, and what takes the time."
    )
    parser.add_argument(
        "--images", type=positive, default=64, help="loaded by one process alone (64)"
    )
    parser.add_argument(
        "--batches", type=positive, default=20, help="of one device, loaded by all processes (20)"
    )
    parser.add_argument("--warmup", type=positive, default=5, help="batches before them (5)")
    parser.add_argument(
        "--step-seconds",
        type=_seconds,
        metavar="SECONDS",
        help="of a training step: says how much of the time it would wait",
    )
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return seconds


def _print_alone(alone: "OneWorker") -> None:
    print(
        f"one process  {alone.images_per_processor_second:.1f} images a second of processor time "
        f"({alone.images_per_second:.1f} by the clock), and {alone.collate_milliseconds:.2f} ms "
        "an image to join batches\n"
    )
    print(f"{'what, with all that it calls':44}{'ms an image':>12}{'share':>9}{'calls':>8}")
    for function in alone.functions:
        if function.share >= _LEAST_SHARE:
            print(
                f"{function.name:44}{function.milliseconds:12.2f}{function.share:9.1%}"
                f"{function.calls:8.2f}"
            )


def _print_loading(loading: "Loading") -> None:
    workers = max(1, loading.workers)
    print(
        f"\nall {loading.workers} workers   {loading.images_per_second:.1f} images a second, "
        f"{loading.images_per_second / workers:.1f} a worker\n"
        f"batches of {loading.batch}, {loading.bytes_per_batch / 2**20:.1f} MiB of images: steps "
        f"of more than {loading.seconds_per_batch:.3g} s do not wait"
    )
