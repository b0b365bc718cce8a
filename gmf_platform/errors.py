"""Errors that a user can mend, and the exit codes of the command line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

__all__ = ["ExitCode", "UserError", "check_least", "counted", "keys_of_task"]


class ExitCode(IntEnum):
    """What the process returns to the shell."""

    DONE = 0
    FAILED = 1
    WRONG_INPUT = 2
    GUARD = 4
    REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: the same command again goes on


class UserError(Exception):
    """Wrong input, data or configuration.

    The message says what happened, where (file or key) and what to do. The command line prints it
    without a traceback and exits with ``ExitCode.WRONG_INPUT``.
    """


def check_least(key: str, value: float, least: int = 1) -> None:
    """Check a number of the config.

    Raises:
        UserError: it is smaller than ``least``.
    """
    if value < least:
        raise UserError(f"{key}: expected {least} or more, not {value}")


def counted(number: int, one: str, several: str) -> str:
    """A number with its word, for messages: ``1 box``, ``2 boxes``."""
    return f"{number} {one if number == 1 else several}"


@contextmanager
def keys_of_task(name: str) -> Iterator[None]:
    """Name keys as they are in joint training.

    What a task's part of model or data says of ``data.root`` is about ``data.tasks.NAME.root``.
    """
    try:
        yield
    except UserError as error:
        said = re.sub(r"(?<![\w/.])(data|model)\.(?=[a-z])", rf"\1.tasks.{name}.", str(error))
        error.args = (said, *error.args[1:])
        raise
