"""What became of a run: each start and end of its processes, and the curves that they logged."""

import fcntl
import json
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gmf_platform import __version__
from gmf_platform.cli.run_directory import RunDirectory
from gmf_platform.errors import ExitCode

__all__ = ["Curves", "git_state", "history", "origin", "read_curves", "recorded", "status"]

_FILE = "history.jsonl"


@contextmanager
def recorded(folder: RunDirectory) -> Iterator[None]:
    """Note in the run's history.jsonl that a process begins, with what, and how it ends.

    A process that is killed notes no end.
    """
    _append(folder, {"event": "start", **origin()})
    outcome = "failed"
    try:
        yield
        outcome = "finished"
    except SystemExit as leave:
        outcome = "stopped" if leave.code == ExitCode.REQUEUE else outcome
        raise
    except KeyboardInterrupt:
        outcome = "stopped"
        raise
    finally:
        _append(folder, {"event": "end", "outcome": outcome})


def origin() -> dict[str, str | None]:
    """What this process was started from: commit, version, host and command."""
    about = {"git": git_state(), "version": __version__, "host": socket.gethostname()}
    return about | {"command": shlex.join(sys.argv)}


def _append(folder: RunDirectory, event: dict[str, Any]) -> None:
    line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **event}
    with (folder.path / _FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def history(folder: RunDirectory) -> list[dict[str, Any]]:
    """The starts and ends of a run's processes; a half-written line is passed over."""
    path, events = folder.path / _FILE, []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with suppress(json.JSONDecodeError):
            events.append(json.loads(line))
    return events


def git_state() -> str | None:
    """Commit of the current folder's repository, and of ours if that is another one.

    ``+`` behind it: tracked files have been changed since. None where there is no repository.
    """
    folders = (Path.cwd(), Path(__file__).resolve().parent)
    states = dict.fromkeys(filter(None, map(_describe, folders)))
    return ", ".join(states) or None


def _describe(folder: Path) -> str:
    command = ["git", "-C", str(folder), "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def status(folder: RunDirectory, last_step: int) -> str:
    """Whether a run is ``running``, ``finished``, ``stopped`` or ``failed``.

    Args:
        folder: of the run.
        last_step: optimiser steps that it has logged. A run that was finished and then made longer
            is not finished any more.
    """
    if _is_alive(folder):
        return "running"
    finished = [score["step"] for score in folder.scores() if score.get("finished")]
    if finished and max(finished) >= last_step:
        return "finished"
    events = history(folder)
    if events and events[-1]["event"] == "start":
        return "failed"  # killed: it could not say so
    return str(events[-1]["outcome"]) if events else "stopped"


def _is_alive(folder: RunDirectory) -> bool:
    """Whether a process holds the run's lock; nothing is left locked or changed."""
    try:
        with (folder.path / "lock").open() as lock:  # a run of someone else can be read alone
            fcntl.lockf(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


@dataclass
class Curves:
    """What a run has logged.

    Attributes:
        scalars: by tag, step -> value; steps are counted from 1.
        hours: that its processes have run, all together.
    """

    scalars: dict[str, dict[int, float]] = field(default_factory=dict)
    hours: float = 0.0

    @property
    def last_step(self) -> int:
        """The last step of which anything was logged; 0 where there is none."""
        return max((max(curve) for curve in self.scalars.values()), default=0)


def read_curves(run: Path) -> Curves:
    """Read a run's TensorBoard files; what a killed process logged too far does not count."""
    from tensorboard.backend.event_processing.event_file_loader import (  # type: ignore[import-untyped]
        LegacyEventFileLoader,
    )

    curves = Curves()
    for path in sorted(run.glob("events.out.tfevents.*")):
        times = []
        for event in LegacyEventFileLoader(str(path)).Load():
            times.append(event.wall_time)
            _take(event, curves)
        curves.hours += (max(times) - min(times)) / 3600 if times else 0.0
    return curves


def _take(event: Any, curves: Curves) -> None:
    if event.HasField("session_log"):  # the run goes on at this step
        for curve in curves.scalars.values():
            for step in [step for step in curve if step > event.step]:
                del curve[step]
    for value in event.summary.value:
        if value.HasField("simple_value"):
            curves.scalars.setdefault(value.tag, {})[event.step + 1] = value.simple_value
    for tag in [tag for tag, curve in curves.scalars.items() if not curve]:
        del curves.scalars[tag]
