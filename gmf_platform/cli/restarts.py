"""The starts of a job that is started again by itself: whose run it is, and whether it comes anywhere."""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from gmf_platform.cluster.slurm import Start, slurm_start
from gmf_platform.errors import ExitCode

__all__ = ["Starts"]


@dataclass(frozen=True)
class _Line:
    """A start, as the run's folder keeps it: of which job, its number, and where it began."""

    job: str
    number: int
    step: int


class Starts:
    """The starts of this job before this one, as ``starts.jsonl`` in the run's folder has them.

    What it answers is the same on all processes, whether or not the first one has already added
    this start.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: Path) -> None:
        self._file = run / "starts.jsonl"
        self._now = slurm_start()
        self._before = [line for line in self._lines() if _is_before(line, self._now)]

    @property
    def has_begun(self) -> bool:
        """Whether the run is of this very job, which was started again."""
        return bool(self._before)

    def add(self, step: int) -> None:
        """Note that this start begins at a step; nothing outside Slurm."""
        if self._now is not None:
            with self._file.open("a") as file:
                line = _Line(self._now.job, self._now.number, step)
                file.write(json.dumps(asdict(line)) + "\n")

    def check_progress(self, step: int, *, most: int) -> None:
        """Stop a job that fails in the same way for ever.

        Args:
            step: where this start begins.
            most: restarts in a row that may begin there; 0 for any number.

        Raises:
            SystemExit: with ``ExitCode.FAILED``, after saying why.
        """
        last = self._before[-most:] if most else []
        if len(last) == most > 0 and all(line.step == step for line in last):
            print(
                f"error: job {last[0].job} was restarted {most} times without a step gained, and "
                f"is at step {step} still: the output of the starts before says why. It stops "
                "here; submitted again it begins to count anew "
                "(checkpoint.max_idle_restarts)",
            )
            raise SystemExit(ExitCode.FAILED)

    def _lines(self) -> list[_Line]:
        lines: list[_Line] = []
        if self._file.is_file():
            for text in self._file.read_text().splitlines():
                with suppress(ValueError, TypeError):  # half a line, of a start that was killed
                    lines.append(_Line(**json.loads(text)))
        return lines


def _is_before(line: _Line, now: Start | None) -> bool:
    return now is not None and line.job == now.job and line.number < now.number
