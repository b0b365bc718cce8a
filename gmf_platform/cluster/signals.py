"""Signals that ask a run to stop: a handler sets a flag, the step boundary acts on it.

Installed before the slow imports, since a cluster may send its signal that early. Imports
nothing slow itself.
"""

import atexit
import signal
from types import FrameType

__all__ = ["are_handled", "install_handlers", "keep_handlers", "requested_signal"]

_received: list[signal.Signals] = []
_installed = False


_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def install_handlers() -> None:
    """Catch SIGTERM, SIGUSR1 (Slurm's warning) and SIGINT.

    A second SIGINT interrupts at once, as people at a terminal expect.
    """
    global _installed
    if not _installed:
        atexit.register(_ignore)
    _installed = True
    for number in _SIGNALS:
        signal.signal(number, _note)


def keep_handlers() -> None:
    """Take the handlers back from a library that put its own in front of them.

    Lightning's SIGTERM handler broadcasts to the other processes from inside the handler, which
    can meet another collective half way.
    """
    if _installed:
        install_handlers()


def are_handled() -> bool:
    """Whether this process hears signals; all processes of a job agree."""
    return _installed


def requested_signal() -> signal.Signals | None:
    """The signal that asked this process to stop, if any has come."""
    return _received[0] if _received else None


def _note(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT and signal.SIGINT in _received:
        raise KeyboardInterrupt
    _received.append(signal.Signals(number))


def _ignore() -> None:
    """Let a signal that comes while Python ends not change the exit code."""
    if _installed:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
