"""Images in tar shards of the WebDataset layout, each of them one read.

Shards are found in ``ROOT/train/*.tar`` and ``ROOT/val/*.tar``, or all in ROOT with ``train`` or
``val`` in their names. An index says where each image lies, so that order, resuming and sharing
among processes are those of image files. Beside `shard-data`'s shards it was written with them; of
others it is made once by reading the tar headers, and kept.
"""

import hashlib
import logging
import os
import re
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from datamodules.images import DataError, Flaw
from datamodules.shards.index import ShardIndex, scan_shard
from datamodules.shards.order import ShardOrder
from gmf_platform.distributed.order import SampleOrder

__all__ = ["ShardSamples", "Split", "find_shards", "index_path", "unfinished_path"]

Split = Literal["train", "val"]

log = logging.getLogger("gmf_platform.shards")

_FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "validation"),
}
_OPEN_FILES = 64
_SHOWN = 20
_SCANNERS = 8
_BLOCK, _LEAST_BLOCKS = 32, 4096


class ShardSamples:
    """The images of a split in tar shards (a ClassSamples).

    Reading is by position, on file descriptors that each process opens for itself, at most 64 at
    a time: processes that share the shards share nothing else.

    Args:
        root: the data set's folder.
        index: where each image lies.
    """

    def __init__(self, root: Path, index: ShardIndex) -> None:
        self.root, self.index = str(root), index
        self._ends = np.cumsum(index.counts)

    @classmethod
    def open(cls, root: Path, split: Split) -> "ShardSamples":
        """The images of a split, if all its shards are there and whole.

        Raises:
            DataError: a shard is missing, cut off, or not of the WebDataset layout; or
                `shard-data` has not finished here.
        """
        unfinished = unfinished_path(root, split)
        if unfinished.exists():
            raise DataError(
                f"{unfinished}: shard-data has not finished here: the same command again goes on"
            )
        shards = find_shards(root, split)
        kept = next((path for path in _index_paths(root, split) if path.is_file()), None)
        if kept is None:
            return cls(root, _scan(root, shards, split))
        index = ShardIndex.load(kept)
        _compare(root, index, shards, kept)
        return cls(root, index)

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes in label order; None where others wrote the shards."""
        return self.index.about.get("class_names")

    def __len__(self) -> int:
        return len(self.index.offsets)

    def read(self, index: int) -> bytes:
        """The encoded image file.

        Raises:
            DataError: the shard cannot be read, or ends before the image does.
        """
        path = f"{self.root}/{self._shard(index)}"
        offset, size = int(self.index.offsets[index]), int(self.index.sizes[index])
        try:
            data = _read_at(_open(path, os.getpid()).number, offset, size)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
        if len(data) < size:
            raise DataError(
                f"{path}: is cut off: it ends before byte {offset + size}, in the image "
                f"{self.index.names[index]}. Fetch or write it again.",
                flaw=Flaw.TRUNCATED,
            )
        return data

    def label(self, index: int) -> int:
        """The class number, 0..K-1."""
        return int(self.index.labels[index])

    def id(self, index: int) -> str:
        """The shard's path relative to the root, and the image's name in it."""
        return f"{self._shard(index)}/{self.index.names[index]}"

    def order(self, *, seed: int) -> SampleOrder:
        """The training order: blocks of neighbours, or single samples where these are of a class.

        Blocks have 32 samples, fewer where there would be less than 4096 blocks: a small set is
        read from memory after the first epoch, and mixes the better.
        """
        if self._is_sorted():
            log.warning(
                "the shards under %s are sorted by class, so each image is read by itself, which "
                "is slow on shared file systems; shard-data writes them in random order",
                self.root,
            )
            return SampleOrder(len(self), seed=seed)
        block = min(_BLOCK, max(1, len(self) // _LEAST_BLOCKS))
        return ShardOrder(self.index.counts, seed=seed, block=block)

    def _shard(self, index: int) -> str:
        return self.index.shards[int(np.searchsorted(self._ends, index, side="right"))]

    def _is_sorted(self) -> bool:
        """Whether neighbours are of one class far more often than in a random order."""
        labels = self.index.labels
        alike = float(np.mean(labels[1:] == labels[:-1])) if len(labels) > 1 else 0.0
        by_chance = float(np.sum((np.bincount(labels) / len(labels)) ** 2))
        return alike > (1 + by_chance) / 2


def find_shards(root: Path, split: Split) -> list[Path]:
    """The tar files of a split, sorted; none if the folder holds no shards."""
    for name in _FOLDERS[split]:
        shards = sorted((root / name).glob("*.tar"))
        if shards:
            return shards
    pattern = re.compile(rf"(^|[^a-z]){split}", re.IGNORECASE)
    return sorted(path for path in root.glob("*.tar") if pattern.search(path.stem))


def index_path(root: Path, split: Split) -> Path:
    """Where the index of a split is, where the folder can be written to."""
    return root / f"index-{split}.npz"


def unfinished_path(root: Path, split: Split) -> Path:
    """The file that stands beside shards which are still being written."""
    return root / f"unfinished-{split}.json"


def _index_paths(root: Path, split: Split) -> tuple[Path, Path]:
    """Beside the shards; and in the user's cache, for shards that cannot be written beside."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    return index_path(root, split), cache / "gmf_platform" / f"index-{split}-{place}.npz"


def _scan(root: Path, shards: list[Path], split: Split) -> ShardIndex:
    """Make the index from the tar headers, and keep it where that is possible."""
    if not shards:
        raise DataError(f"{root}: has no shards *.tar for {split}, in {split}/ or by their names")
    log.info("reading the headers of %d shards under %s, once", len(shards), root)
    names = [path.relative_to(root).as_posix() for path in shards]
    with ThreadPoolExecutor(_SCANNERS) as pool:  # on a shared file system it waits most of the time
        scans = [pool.submit(scan_shard, *pair) for pair in zip(shards, names, strict=True)]
    errors = [scan.exception() for scan in scans]
    _refuse([error for error in errors if isinstance(error, DataError)])
    index = ShardIndex.joined([scan.result() for scan in scans])
    for path in _index_paths(root, split):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            index.save(path)
        except OSError:
            continue
        break
    return index


def _compare(root: Path, index: ShardIndex, shards: list[Path], kept: Path) -> None:
    """Refuse shards that are not as the index has them, before training begins.

    Raises:
        DataError: naming them.
    """
    sizes = {path.relative_to(root).as_posix(): path.stat().st_size for path in shards}
    expected = dict(zip(index.shards, index.shard_bytes.tolist(), strict=True))
    missing = [name for name in expected if name not in sizes]
    if missing:
        raise DataError(
            f"{root / missing[0]}: is missing, with {len(missing) - 1} more of {len(expected)} "
            f"shards. Fetch or write them again, or delete {kept} to go on without."
        )
    _refuse(
        [
            _differing(root / name, size, expected.get(name), kept)
            for name, size in sizes.items()
            if size != expected.get(name)
        ]
    )


def _differing(shard: Path, size: int, expected: int | None, kept: Path) -> DataError:
    """What it means that a shard is not of the size that an index has."""
    if expected is None:
        return DataError(f"{shard}: is not in {kept}. Delete that index to read it too.")
    if size < expected:
        return DataError(
            f"{shard}: is cut off: it has {size} bytes of {expected}. "
            "Fetch it again; or delete it, and the same shard-data writes it again.",
            flaw=Flaw.TRUNCATED,
        )
    return DataError(
        f"{shard}: has {size} bytes and not {expected}, as when {kept} was "
        "made. Delete that index if the shard is right."
    )


def _refuse(problems: list[DataError]) -> None:
    """Raise one error for all of several, if there are any."""
    if problems:
        said = [str(problem) for problem in problems[:_SHOWN]]
        more = len(problems) - len(said)
        said += [f"... and {more} more"] * (more > 0)
        raise DataError("\n".join(said), flaw=problems[0].flaw)


class _Descriptor:
    """An open file, closed when the last reader is done with it."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


@lru_cache(maxsize=_OPEN_FILES)
def _open(path: str, process: int) -> _Descriptor:
    """Open a file for reading by position, once in each process."""
    return _Descriptor(os.open(path, os.O_RDONLY))


def _read_at(descriptor: int, offset: int, size: int) -> bytes:
    """Read ``size`` bytes, or as many as the file has; one call may give fewer than asked."""
    parts = []
    while size and (part := os.pread(descriptor, size, offset)):
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return b"".join(parts)
