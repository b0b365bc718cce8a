"""How far a long verb is: a bar on a terminal, elsewhere plain lines."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(title: str, did: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; elsewhere a line every tenth of the way. Both go to stderr.

    Args:
        title: what is being worked on.
        did: what was done to those that are counted, for the lines, e.g. ``opened``.

    Yields:
        A function of how many are done, and how many there are.
    """
    if not sys.stderr.isatty():
        yield _Lines(title, did)
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(title)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Lines:
    """A plain line for each tenth that is done."""

    def __init__(self, title: str, did: str) -> None:
        self.title, self.did, self.tenths = title, did, 0

    def __call__(self, done: int, total: int) -> None:
        if 10 * done // total > self.tenths:
            self.tenths = 10 * done // total
            print(f"{self.title}: {done}/{total} {self.did}", file=sys.stderr, flush=True)
