"""Signals that ask a run to stop: a handler sets a flag, the step boundary acts on it.

Installed before the slow imports, since a cluster may send its signal that early. Imports
nothing slow itself.
"""

import signal
from types import FrameType

__all__ = ["install_handlers", "requested_signal"]

_received: list[signal.Signals] = []


def install_handlers() -> None:
    """Catch SIGTERM, SIGUSR1 (Slurm's warning) and SIGINT.

    A second SIGINT interrupts at once, as people at a terminal expect.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, _note)


def requested_signal() -> signal.Signals | None:
    """The signal that asked this process to stop, if any has come."""
    return _received[0] if _received else None


def _note(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT and signal.SIGINT in _received:
        raise KeyboardInterrupt
    _received.append(signal.Signals(number))
