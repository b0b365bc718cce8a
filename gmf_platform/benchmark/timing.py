"""Times of several things that take turns, so that a busy machine slows all of them alike."""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Self

import torch

__all__ = ["Clock", "Ratio", "interleaved", "machine", "synchronise"]

Clock = Literal["wall", "processor"]

_PACKAGES = ("torch", "torchvision", "lightning", "timm", "birder", "albumentations")


@dataclass(frozen=True)
class Ratio:
    """How many times as long one thing takes as another.

    Attributes:
        best: by the smallest time of each.
        low: the smallest ratio of a round, in which the two ran one after the other.
        high: the largest.
    """

    best: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: Sequence[float], base: Sequence[float]) -> Self:
        """From the times of the same rounds."""
        rounds = [a / b for a, b in zip(seconds, base, strict=True)]
        return cls(min(seconds) / min(base), min(rounds), max(rounds))

    def __str__(self) -> str:
        return f"{self.best:.2f} ({self.low:.2f} to {self.high:.2f})"


def interleaved(
    tasks: Mapping[str, Callable[[], object]],
    *,
    runs: int,
    device: torch.device,
    warmup: int = 1,
    clock: Clock = "wall",
) -> dict[str, list[float]]:
    """Seconds of each run of each task; every other round goes backwards.

    Args:
        tasks: by name.
        runs: timed rounds.
        device: that they run on; each run is waited for.
        warmup: rounds before, which do not count.
        clock: ``processor`` counts what this process was given, by all its threads.
    """
    now = time.perf_counter if clock == "wall" else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(-warmup, runs):
        for name in list(tasks)[:: 1 if number % 2 == 0 else -1]:
            synchronise(device)
            begun = now()
            tasks[name]()
            synchronise(device)
            if number >= 0:
                seconds[name].append(now() - begun)
    return seconds


def synchronise(device: torch.device) -> None:
    """Wait for what a GPU has been given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: torch.device) -> dict[str, Any]:
    """What figures depend on: device, threads, and the versions of what was installed."""
    name = _processor()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {
        "device": device.type,
        "name": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    } | {package: found for package in _PACKAGES if (found := _version(package))}


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
