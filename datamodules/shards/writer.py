"""Writes images into tar shards in random order; a run that was killed goes on."""

import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from threading import Event, Lock

import numpy as np
import numpy.typing as npt

from datamodules.class_samples import ClassSamples
from datamodules.images import BEGINNINGS, ENDINGS, DataError, decode_image
from datamodules.shards.folder import ShardFolder, temporary_of, writing
from datamodules.shards.index import ImageMember, Names, ShardIndex, scan_shard
from datamodules.shards.samples import Split
from gmf_platform.errors import UserError

__all__ = ["Written", "write_shards"]

Numbers = npt.NDArray[np.int64]

_LOOKED_AT = 200  # images, for the mean of their sizes
_MEMBERS = 2048  # bytes of a sample's two tar headers, its label, and what fills up its image


@dataclass(frozen=True)
class Written:
    """What is there now, and how much of it is new.

    Attributes:
        images: in all shards.
        shards: how many there are.
        bytes: of all shards.
        new_shards: those that this call has written.
        new_bytes: of those.
    """

    images: int
    shards: int
    bytes: int
    new_shards: int
    new_bytes: int


def write_shards(
    samples: ClassSamples,
    root: Path,
    *,
    split: Split,
    class_names: Sequence[str],
    name: str,
    samples_per_shard: int | None = None,
    shard_bytes: int = 500_000_000,
    workers: int = 4,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Write a split as ``ROOT/SPLIT/NAME-SPLIT-000000.tar`` and so on, and its index beside.

    Each image is copied as it is, with its class number, as ``KEY.jpg`` and ``KEY.cls``; KEY is
    its path without the split's folder and the suffix, and ``_`` for dots in the name. A shard
    appears under its name when it is whole. The same call again keeps what is there and writes
    what is missing.

    Args:
        samples: the images.
        root: folder of the shards.
        split: name of the split.
        class_names: in label order.
        name: of the data set, with which the shards' names begin.
        samples_per_shard: the most images in a shard; None: by ``shard_bytes``.
        shard_bytes: bytes of a shard, nearly, by the mean of some images.
        workers: threads, each of which writes a shard. Little of it is Python's own work.
        seed: of the images' order.
        overwrite: delete the shards of the split that are there.
        progress: called with the images done and their number.

    Raises:
        UserError: other shards are there, a class has no image, an image is unreadable, or the
            disk is full.
    """
    _check_classes(samples, class_names, split)
    mean = _mean_bytes(samples)
    most = samples_per_shard or max(1, round(shard_bytes / mean))
    order = np.random.default_rng(seed).permutation(len(samples))
    chunks = np.array_split(order, -(-len(samples) // most))
    keys = _keys([samples.id(i) for i in range(len(samples))])
    about = {
        "name": name,
        "images": len(samples),
        "shards": len(chunks),
        "seed": seed,
        "class_names": list(class_names),
        "content": _digest(samples, keys),
    }
    folder = ShardFolder(root, split, about)
    if overwrite:
        folder.clear()
    missing: list[int] = []
    if (index := folder.finished()) is None:
        missing = folder.missing()
        _check_space(root, round(mean * sum(len(chunks[i]) for i in missing)))
        folder.begin()
        copier = _Copier(samples, keys, progress or (lambda done, total: None))
        index = copier.copy(chunks, folder, workers=workers)
        folder.finish(index)
    new_bytes = int(index.shard_bytes[missing].sum())
    total = int(index.shard_bytes.sum())
    return Written(len(samples), len(chunks), total, len(missing), new_bytes)


class _StoppedError(Exception):
    """Another shard could not be written."""


class _Copier:
    """Copies images into shards, several shards at a time."""

    def __init__(
        self, samples: ClassSamples, keys: Names, progress: Callable[[int, int], None]
    ) -> None:
        self.samples, self.keys, self.progress = samples, keys, progress
        self.done, self.lock, self.stop = 0, Lock(), Event()

    def copy(self, chunks: Sequence[Numbers], folder: ShardFolder, *, workers: int) -> ShardIndex:
        """Write the shards that are not there; the first error stops all."""
        with ThreadPoolExecutor(workers) as pool:
            futures = [
                pool.submit(self._shard, chunk, path, name)
                for chunk, path, name in zip(chunks, folder.shards, folder.names, strict=True)
            ]
            try:
                wait(futures)
                errors = [error for future in futures if (error := future.exception())]
                if errors:
                    raise next(e for e in errors if not isinstance(e, _StoppedError))
                return ShardIndex.joined([future.result() for future in futures])
            finally:
                self.stop.set()
                pool.shutdown(cancel_futures=True)

    def _shard(self, chunk: Numbers, path: Path, name: str) -> ShardIndex:
        try:
            return (self._keep if path.is_file() else self._write)(chunk, path, name)
        except BaseException:
            self.stop.set()
            raise

    def _keep(self, chunk: Numbers, path: Path, name: str) -> ShardIndex:
        index = scan_shard(path, name)
        wanted = [(self._member(i), self.samples.label(i)) for i in chunk.tolist()]
        if list(zip(index.names, index.labels.tolist(), strict=True)) != wanted:
            raise DataError(
                f"{path}: holds other images than the same shard-data would write. Delete it, and "
                "the same command writes it again."
            )
        self._count(len(chunk))
        return index

    def _write(self, chunk: Numbers, path: Path, name: str) -> ShardIndex:
        temporary = temporary_of(path)
        try:
            with writing(path), temporary.open("wb") as file:
                with tarfile.open(fileobj=file, mode="w") as archive:
                    images = [self._add(archive, i) for i in chunk.tolist()]
                file.flush()
                os.fsync(file.fileno())  # before it gets its name: a whole shard, or none
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return ShardIndex.of_shard(name, path.stat().st_size, images)

    def _add(self, archive: tarfile.TarFile, i: int) -> ImageMember:
        if self.stop.is_set():
            raise _StoppedError
        data, label = self._read(i), self.samples.label(i)
        offset = _add_member(archive, self._member(i), data)
        _add_member(archive, f"{self.keys[i]}.cls", str(label).encode("ascii"))
        self._count(1)
        return ImageMember(self._member(i), offset, len(data), label)

    def _read(self, i: int) -> bytes:
        """An image that begins and ends like one; `check-data` decodes all between."""
        data = self.samples.read(i)
        if not (data.startswith(BEGINNINGS) and data.endswith(ENDINGS)):
            decode_image(data, self.samples.id(i))  # says what is wrong, if anything is
        return data

    def _member(self, i: int) -> str:
        return f"{self.keys[i]}{PurePosixPath(self.samples.id(i)).suffix.lower()}"

    def _count(self, images: int) -> None:
        with self.lock:
            self.done += images
            self.progress(self.done, len(self.samples))


def _add_member(archive: tarfile.TarFile, name: str, data: bytes) -> int:
    """Add a file to an archive; gives the offset of its first byte."""
    info = tarfile.TarInfo(name)  # without time and owner, so that the same images give same bytes
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))
    return archive.offset - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _keys(ids: Sequence[str]) -> Names:
    """Names of the samples: unique, and without a dot, at which their suffix would begin."""
    paths = [PurePosixPath(name) for name in ids]
    is_shared = len({path.parts[0] for path in paths}) == 1 and all(len(p.parts) > 1 for p in paths)
    keys: dict[str, None] = {}
    for path in paths:
        stem = path.stem.replace(".", "_")
        key = str(PurePosixPath(*path.parts[1 if is_shared else 0 : -1], stem))
        while key in keys:  # of a.jpg and a.png
            key += "_"
        keys[key] = None
    return Names(list(keys))


def _digest(samples: ClassSamples, keys: Names) -> str:
    """Tells other images, or other labels of them, from these."""
    labels = np.array([samples.label(i) for i in range(len(samples))], np.int64)
    parts = (keys.text, keys.ends.tobytes(), labels.tobytes())
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _check_classes(samples: ClassSamples, class_names: Sequence[str], split: Split) -> None:
    there = {samples.label(i) for i in range(len(samples))}
    empty = [name for label, name in enumerate(class_names) if label not in there]
    if not there or (empty and split == "train"):
        raise UserError(
            f"{split}: no image of {len(empty)} of {len(class_names)} classes: {', '.join(empty[:5])}"
            f"{', ...' if len(empty) > 5 else ''}. Fill or remove their folders."
        )


def _mean_bytes(samples: ClassSamples) -> float:
    """Bytes of a sample in a shard, by some images evenly spaced over the set."""
    count = min(_LOOKED_AT, len(samples))
    picked = np.linspace(0, len(samples) - 1, count).round().astype(int).tolist()
    return _MEMBERS + float(np.mean([len(samples.read(i)) for i in picked]))


def _check_space(root: Path, needed: int) -> None:
    there = next(path for path in (root, *root.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise UserError(
            f"{root}: the disk has {free / 1e9:.1f} GB free, and the shards need about "
            f"{needed / 1e9:.1f} GB: make room, or name a folder on another disk"
        )
