"""A thread that ends a process which hangs, after saying where."""

import faulthandler
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gmf_platform.cluster.heartbeats import (
    ALARMED,
    Heartbeat,
    State,
    describe,
    look,
    own_address,
    stacks,
)
from gmf_platform.errors import ExitCode

__all__ = ["WatchThread", "tell"]

_ALARM = "alarm"
_FRAMES = 12
_LONGEST_INTERVAL = 5.0


class WatchThread(threading.Thread):
    """Writes this process's heartbeat, and ends the process where it hangs.

    The first rank that has passed no boundary for too long raises an alarm: a file, which all see.
    Each then writes down where it is, waits for the others to do so, says what is known of all of
    them, and leaves; the launcher would otherwise end them before.

    Args:
        folder: of the heartbeats; there must be no alarm in it from before.
        rank: of this process.
        world_size: number of processes.
        timeout: seconds without a boundary that are too long.
        log: file that the lowest rank alive adds its message to.
        before_leaving: called last.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rank: int,
        world_size: int,
        timeout: float,
        log: Path,
        before_leaving: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.folder, self.rank, self.world_size = folder, rank, world_size
        self.timeout, self.log, self.before_leaving = timeout, log, before_leaving
        self.interval = min(_LONGEST_INTERVAL, timeout / 10)
        self.ended = ""
        self._place = "beginning"
        self._count = self._passed = self._beats = 0
        self._idle = 0.0
        self._stopped = threading.Event()
        self._address = own_address()
        self._file = folder / f"rank-{rank}"
        self._descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o644)
        self._write()

    def pass_by(self, place: str, *, shared: bool = True) -> None:
        """Note that the process is alive and at a place; called at each boundary.

        Args:
            place: what begins.
            shared: all ranks pass here as often.
        """
        self._place = place
        self._passed += shared
        self._count += 1
        self._write()

    def leave_behind(self, reason: str) -> None:
        """Write down why this process is about to leave."""
        self.ended = reason
        self._count += 1  # leaving has as long as anything else
        self._write()

    def stop(self) -> None:
        """End the thread, and take this rank's heartbeat away."""
        self._stopped.set()
        self.join()
        os.close(self._descriptor)
        with suppress(OSError):
            self._file.unlink()
            self.folder.rmdir()  # the last one can

    def find_culprit(self) -> dict[int, State]:
        """What is known of all ranks, as soon as one is found that is gone by itself."""
        return look(
            self.folder,
            self.world_size,
            seconds=3 * self.interval,
            until=lambda state: state.last.rank != self.rank and state.is_to_blame,
        )

    def run(self) -> None:
        """Beat and watch."""
        seen, before = -1, time.monotonic()
        while not self._stopped.wait(self.interval):
            now = time.monotonic()
            # A process that was suspended as a whole has not hung: such time counts little.
            self._idle += min(now - before, 2 * self.interval)
            if self._count != seen:
                seen, self._idle = self._count, 0.0
            before = now
            self._beats += 1
            self._write()
            with suppress(OSError):  # on a network's disk, others see it when it is closed
                os.close(os.open(self._file, os.O_RDWR))
            if self._idle > self.timeout:
                self._alarm()
            if (self.folder / _ALARM).exists():
                self._leave()

    def _write(self) -> None:
        number, host, namespace = self._address
        with suppress(OSError):  # a full disk is no reason to end a run
            Heartbeat(
                rank=self.rank,
                process=number,
                host=host,
                namespace=namespace,
                beats=self._beats,
                passed=self._passed,
                place=self._place,
                since=self._idle,
                ended=self.ended,
            ).write(self._descriptor)

    def _alarm(self) -> None:
        with suppress(OSError), (self.folder / _ALARM).open("x") as file:
            file.write(f"rank {self.rank} has passed no boundary for {self._idle:.0f} s")

    def _leave(self) -> None:
        threads = _all_stacks()
        print(threads, file=sys.__stderr__, flush=True)
        with suppress(OSError):
            (self.folder / f"stack-{self.rank}").write_text(_main_stack())
        states = look(
            self.folder, self.world_size, seconds=3 * self.interval, until=lambda state: False
        )
        if self._stopped.is_set():
            return
        self.ended = self.ended or ALARMED
        self._write()
        why = (self.folder / _ALARM).read_text() if (self.folder / _ALARM).exists() else "alarm"
        parts = [f"watchdog: {why}", describe(states), stacks(self.folder, states), threads]
        tell("\n".join(parts[:-1]), None)
        alive = [rank for rank, state in states.items() if not state.is_dead]
        if self.rank == min(alive, default=self.rank):
            tell("\n".join(parts), self.log, console=False)
        if self.before_leaving is not None:
            self.before_leaving()
        os._exit(ExitCode.FAILED)


def tell(message: str, log: Path | None, *, console: bool = True) -> None:
    """Print a message where the process's own logging may not be at hand, and add it to a file."""
    if console:
        print(message, file=sys.stderr, flush=True)
    if log is not None:
        with suppress(OSError), log.open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n")


def _main_stack() -> str:
    """The innermost frames of the main thread."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return "".join(traceback.format_stack(frame)[-_FRAMES:]) if frame else ""


def _all_stacks() -> str:
    """The Python frames of all threads, gone through without touching the interpreter's objects."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()
