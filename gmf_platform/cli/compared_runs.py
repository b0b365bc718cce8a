"""What is compared of runs: their configs, and what came of them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from gmf_platform.cli.arguments import config_of
from gmf_platform.cli.history import Curves, history, read_curves, status
from gmf_platform.cli.run_directory import RunDirectory, flatten
from gmf_platform.cli.sources import as_yaml
from gmf_platform.errors import UserError

__all__ = ["Figure", "Group", "Run", "differing_keys", "grouped", "read_run"]

_SEED = "seed_everything"


@dataclass(frozen=True)
class Run:
    """A run as it is compared.

    Attributes:
        name: of its folder.
        config: canonical key -> value, as on one line of a config.
        status: ``running``, ``finished``, ``stopped`` or ``failed``.
        git: what its last process was started from; empty if unknown.
        figures: by title; those that the run does not have are left out.
    """

    name: str
    config: dict[str, str]
    status: str
    git: str
    figures: dict[str, float]


def read_run(folder: Path, metrics: Sequence[str] = ()) -> Run:
    """Read a run's folder.

    Args:
        folder: of the run.
        metrics: to show beside the one that decides which checkpoint is best.

    Raises:
        UserError: it is no run, or a metric was never logged.
    """
    run = RunDirectory(folder)
    tree = yaml.safe_load(config_of(folder).read_text())
    curves = read_curves(folder)
    known = sorted(tag for tag in curves.scalars if tag.startswith("val/"))
    if missing := [name for name in metrics if name not in curves.scalars]:
        raise UserError(
            f"--metric {missing[0]}: {folder} has not logged it; it has: {', '.join(known)}"
        )
    checkpoint = tree.get("checkpoint") or {}
    monitor = checkpoint.get("monitor", "val/miou")
    figures = _figures(curves, monitor, metrics, smallest=checkpoint.get("mode") == "min")
    starts = [event for event in history(run) if event["event"] == "start"]
    return Run(
        folder.resolve().name,
        {key: as_yaml(value) for key, value in flatten(tree)},
        status(run, curves.last_step),
        (starts[-1]["git"] or "") if starts else "",
        figures | _tested(run, monitor),
    )


def _figures(
    curves: Curves, monitor: str, metrics: Sequence[str], *, smallest: bool
) -> dict[str, float]:
    """The best validation's scores and the last one's, the last loss, steps and hours."""
    figures: dict[str, float] = {}
    best = curves.scalars.get(monitor, {})
    for name in dict.fromkeys([monitor, *metrics]):
        curve = curves.scalars.get(name)
        if curve:
            step = (min if smallest else max)(best or curve, key=(best or curve).__getitem__)
            figures |= {f"best {name}": curve[step]} if step in curve else {}
            figures |= {f"last {name}": curve[max(curve)]}
    if best:
        figures["best step"] = (min if smallest else max)(best, key=best.__getitem__)
    if loss := curves.scalars.get("train/loss"):
        figures["last train/loss"] = loss[max(loss)]
    return figures | {"steps": curves.last_step, "hours": curves.hours}


def _tested(run: RunDirectory, monitor: str) -> dict[str, float]:
    """The score of the last ``test``."""
    name = f"test/{monitor.partition('/')[2]}"
    found = [score[name] for score in run.scores() if name in score]
    return {name: found[-1]} if found else {}


@dataclass(frozen=True)
class Figure:
    """A figure of one or more runs.

    Attributes:
        mean: over the runs that have it.
        spread: their standard deviation (of a sample, n - 1); None for one run.
    """

    mean: float
    spread: float | None = None


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seed alone."""

    runs: list[Run]

    @property
    def name(self) -> str:
        """Of the run; of several, that of the first and how many they are."""
        if len(self.runs) == 1:
            return self.runs[0].name
        return f"{self.runs[0].name} ({len(self.runs)} runs)"

    @property
    def config(self) -> dict[str, str]:
        """Of the runs, with all their seeds."""
        seeds = dict.fromkeys(run.config.get(_SEED, "") for run in self.runs)
        return self.runs[0].config | {_SEED: " ".join(seeds)}

    @property
    def status(self) -> str:
        """Of the runs, counted where they differ."""
        counts = Counter(run.status for run in self.runs)
        if len(counts) == 1:
            return next(iter(counts))
        return ", ".join(f"{number} {what}" for what, number in counts.items())

    @property
    def git(self) -> str:
        """What the runs were started from."""
        return " ".join(dict.fromkeys(filter(None, (run.git for run in self.runs))))

    def figure(self, title: str) -> Figure | None:
        """Mean and spread of a figure; None where no run has it."""
        found = [run.figures[title] for run in self.runs if title in run.figures]
        if not found:
            return None
        return Figure(mean(found), stdev(found) if len(found) > 1 else None)


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Put runs together that differ by their seed alone, in the order given."""
    groups: dict[Any, Group] = {}
    for run in runs:
        identity = tuple(sorted((k, v) for k, v in run.config.items() if k != _SEED))
        groups.setdefault(identity, Group([])).runs.append(run)
    return list(groups.values())


def differing_keys(groups: Sequence[Group]) -> list[str]:
    """The keys whose values differ, in alphabetical order.

    Of an object of different classes those keys are left out that only one of the classes has.
    """
    configs = [group.config for group in groups]
    keys = sorted({key for config in configs for key in config})
    differ = [key for key in keys if len({config.get(key) for config in configs}) > 1]
    changed = [k.removesuffix("class_path") for k in differ if k.endswith(".class_path")]
    return [
        key
        for key in differ
        if key.endswith(".class_path")
        or all(key in config for config in configs)
        or not key.startswith(tuple(changed))
    ]
