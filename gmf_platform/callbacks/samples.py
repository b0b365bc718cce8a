"""Which samples of its split an evaluation batch holds."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

__all__ = ["SampleNumbers"]


class SampleNumbers:
    """Counts the batches of an evaluation pass, which come in the order of their loader.

    Of joint training, each task's apart.
    """

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def next(self, loaders: Any, name: str) -> tuple[Any, Sequence[int]] | None:
        """The loader that the next batch of a task is from, and its samples' numbers in the split.

        Args:
            loaders: the trainer's; of joint training it has one of each task.
            name: of the task; empty where there is one alone.

        Returns:
            None of a loader of someone else: which sample is which is not known.
        """
        loader = getattr(loaders, "loaders", {"": loaders}).get(name)
        number = self._seen[name]
        self._seen[name] += 1
        batches = getattr(getattr(loader, "batches", None), "batches", None)
        return None if batches is None else (loader, [key.sample for key in batches[number]])
