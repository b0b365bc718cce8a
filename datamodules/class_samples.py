"""Where the images of a classification set come from: anything that gives bytes and a label."""

import os
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np

from datamodules.images import read_bytes

__all__ = ["ClassSamples", "FolderSamples"]


class ClassSamples(Protocol):
    """The images of a split with their labels, in a fixed order.

    A source is pickled or forked into each loading process: it opens files there, on first use.
    """

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """The encoded image file, of any format that OpenCV or Pillow reads.

        Raises:
            DataError: it cannot be read; the message names it.
        """
        ...

    def label(self, index: int) -> int:
        """The class number, 0..K-1 in the order of the class names."""
        ...

    def id(self, index: int) -> str:
        """The image's path relative to the data set's root, with forward slashes."""
        ...


class FolderSamples:
    """Image files below a folder.

    A million names as Python strings would be copied into each forked loading process, since
    reading one writes its reference count; here they are one run of bytes.

    Args:
        root: the data set's folder.
        entries: path relative to the root, with forward slashes, and label of each image.
    """

    def __init__(self, root: Path, entries: Iterable[tuple[str, int]]) -> None:
        self.root = str(root)
        entries = list(entries)
        names = [os.fsencode(name) for name, _ in entries]
        self._names = b"".join(names)
        self._ends = np.fromiter(accumulate(map(len, names)), np.int64, len(names))
        self._labels = np.fromiter((label for _, label in entries), np.int64, len(entries))

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, index: int) -> bytes:
        """The bytes of the image file.

        Raises:
            DataError: it is missing, empty or cannot be read.
        """
        return read_bytes(f"{self.root}/{self.id(index)}")

    def label(self, index: int) -> int:
        """The class number, 0..K-1."""
        return int(self._labels[index])

    def id(self, index: int) -> str:
        """The path relative to the root."""
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._names[start : int(self._ends[index])])
