"""What each process of a job last did, in files that outlive it: who is dead, and who is behind.

Files rather than the processes' own store: that ends with the first process, and a person can
still read files when all have ended.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["ALARMED", "LOST", "Heartbeat", "State", "describe", "look", "own_address", "stacks"]

LOST = "lost its connection to the others"
ALARMED = "left on an alarm"
"""Why a process left that need not be the one to blame."""

_BYTES = 1024


@dataclass(frozen=True)
class Heartbeat:
    """A process's sign of life.

    Attributes:
        rank: of the process.
        process: its number, as its own machine counts.
        host: name of its machine.
        namespace: of process numbers; containers on a machine each have their own.
        beats: grows for as long as the process lives, even if it hangs.
        passed: boundaries passed that all ranks pass alike.
        place: what it is doing.
        since: seconds that it has been at it.
        ended: why it left; empty while it runs.
    """

    rank: int
    process: int
    host: str
    namespace: str
    beats: int
    passed: int
    place: str
    since: float
    ended: str = ""

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.process} on {self.host})"

    def write(self, descriptor: int) -> None:
        """Write it over the one of before.

        A few microseconds, and what was written outlives the process, however that ends.

        Args:
            descriptor: of the rank's open file.
        """
        line = json.dumps(asdict(self)).encode()
        os.pwrite(descriptor, line.ljust(_BYTES), 0)

    @classmethod
    def read(cls, folder: Path, rank: int) -> "Heartbeat | None":
        """The last sign of life of a rank; None if it has given none."""
        with suppress(OSError, ValueError, TypeError):
            return cls(**json.loads((folder / f"rank-{rank}").read_bytes()))
        return None


@dataclass(frozen=True)
class State:
    """A rank as another one sees it."""

    last: Heartbeat
    is_dead: bool

    @property
    def is_to_blame(self) -> bool:
        """Whether it is gone for a reason of its own."""
        if self.last.ended:
            return self.last.ended not in (LOST, ALARMED)
        return self.is_dead


def own_address() -> tuple[int, str, str]:
    """Number, host and namespace of this process."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115  # a link to nowhere
    except OSError:
        namespace = ""
    return os.getpid(), socket.gethostname(), namespace


def look(
    folder: Path, world_size: int, *, seconds: float, until: Callable[[State], bool]
) -> dict[int, State]:
    """Watch the heartbeats of all ranks.

    Args:
        folder: where they are.
        world_size: number of ranks.
        seconds: to look for at most; a rank on another machine that gives no sign in it is dead.
        until: stop as soon as it holds for a rank, and is not to be waited for.

    Returns:
        What is known of each rank that ever gave a sign.
    """
    first = {r: beat for r in range(world_size) if (beat := Heartbeat.read(folder, r))}
    end = time.monotonic() + seconds
    while True:
        is_over = time.monotonic() >= end
        states = {r: _state(beat, Heartbeat.read(folder, r), is_over) for r, beat in first.items()}
        if is_over or any(until(state) for state in states.values()):
            return states
        time.sleep(min(0.1, seconds))


def _state(first: Heartbeat, now: Heartbeat | None, is_over: bool) -> State:
    now = now or first
    if now.ended:
        return State(now, is_dead=False)
    if _is_here(now):
        return State(now, is_dead=not _is_running(now.process))
    return State(now, is_dead=is_over and now.beats == first.beats)


def _is_here(beat: Heartbeat) -> bool:
    """Whether it is of a process that this one's system knows by its number."""
    _, host, namespace = own_address()
    return (beat.host, beat.namespace) == (host, namespace) and Path("/proc/self/stat").exists()


def _is_running(process: int) -> bool:
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")  # dead, and not yet buried


def describe(states: Mapping[int, State]) -> str:
    """Which ranks are dead, have left or are behind, and where they were; a line each."""
    lines = list(_gone(states)) or list(_behind(states))
    return "\n".join(lines)


def _gone(states: Mapping[int, State]) -> Iterator[str]:
    for state in states.values():
        last = state.last
        if state.is_to_blame and last.ended:
            yield f"{last} left with {last.ended}; it was at: {last.place}"
        elif state.is_to_blame:
            yield f"{last} is dead; it was last at: {last.place}"


def _behind(states: Mapping[int, State]) -> Iterator[str]:
    running = [state.last for state in states.values() if not state.is_to_blame]
    passed = [beat.passed for beat in running]
    word = "is behind" if min(passed) < max(passed) else "is"
    for beat in running:
        if beat.passed == min(passed):
            yield f"{beat} {word}, for {beat.since:.0f} s, at: {beat.place}"


def stacks(folder: Path, states: Mapping[int, State]) -> str:
    """Where the main threads of ranks are, those at one place together, the one behind first."""
    at: dict[str, list[int]] = {}
    for rank in sorted(states, key=lambda rank: states[rank].last.passed):
        with suppress(OSError):
            at.setdefault((folder / f"stack-{rank}").read_text(), []).append(rank)
    return "\n".join(f"rank {', '.join(map(str, who))} in\n{text}" for text, who in at.items())
