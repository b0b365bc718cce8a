"""Where each image lies in tar shards of the WebDataset layout.

A sample is a run of members of one tar file whose names share all before the first dot of their
last part: ``n01440764/10026.jpg`` and ``n01440764/10026.cls``, the image as it was and its class
number as text. The members of a tar file lie uncompressed, so that with their offsets any image
is one read.
"""

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from datamodules.images import DataError, Flaw
from datamodules.pairs import IMAGE_SUFFIXES

__all__ = ["END", "ImageMember", "Names", "ShardIndex", "scan_shard", "split_name"]

END = 1024
"""Bytes of zero that end a whole tar file (POSIX 1003.1, pax, "ustar Interchange Format")."""
_VERSION = 1
_LABEL_SUFFIX = ".cls"

Numbers = npt.NDArray[np.int64]


class Names(Sequence[str]):
    """Strings in one run of bytes: a million of Python's would be copied to each forked worker.

    Args:
        names: the strings.
    """

    def __init__(self, names: Sequence[str]) -> None:
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self.text = b"".join(encoded)
        self.ends: Numbers = np.cumsum([len(name) for name in encoded], dtype=np.int64)

    @classmethod
    def packed(cls, text: bytes, ends: Numbers) -> Self:
        """From the run of bytes and the end of each string in it."""
        self = cls([])
        self.text, self.ends = text, ends
        return self

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        """The string at an index 0..N-1."""
        begin = int(self.ends[index - 1]) if index else 0
        return self.text[begin : int(self.ends[index])].decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class ImageMember:
    """An image in a tar file.

    Attributes:
        name: of the tar member.
        offset: of its first byte in the tar file.
        size: in bytes.
        label: class number.
    """

    name: str
    offset: int
    size: int
    label: int


@dataclass(frozen=True)
class ShardIndex:
    """What a list of shards holds, S shards with N images in all.

    Attributes:
        shards: paths of the tar files relative to the data set's root.
        shard_bytes: size of each tar file (S,).
        counts: images in each (S,).
        names: of the images' tar members.
        offsets: of each image in its tar file (N,).
        sizes: of each image in bytes (N,).
        labels: class numbers (N,).
        about: what else is known: of written shards ``class_names`` and how they were made.
    """

    shards: list[str]
    shard_bytes: Numbers
    counts: Numbers
    names: Names
    offsets: Numbers
    sizes: Numbers
    labels: Numbers
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_shard(cls, shard: str, size: int, images: Sequence[ImageMember]) -> Self:
        """The index of one shard of ``size`` bytes."""
        columns = np.array([(m.offset, m.size, m.label) for m in images], np.int64).reshape(-1, 3)
        return cls(
            shards=[shard],
            shard_bytes=np.array([size]),
            counts=np.array([len(images)]),
            names=Names([member.name for member in images]),
            offsets=columns[:, 0],
            sizes=columns[:, 1],
            labels=columns[:, 2],
        )

    @classmethod
    def joined(cls, parts: Sequence["ShardIndex"], about: dict[str, Any] | None = None) -> Self:
        """The index of all shards of several indices, one behind the other."""
        arrays = {name: np.concatenate([getattr(p, name) for p in parts]) for name in _ARRAYS}
        begins = np.cumsum([0, *(len(part.names.text) for part in parts)])
        ends = [part.names.ends + begin for part, begin in zip(parts, begins, strict=False)]
        return cls(
            shards=[shard for part in parts for shard in part.shards],
            names=Names.packed(b"".join(part.names.text for part in parts), np.concatenate(ends)),
            about=about or {},
            **arrays,
        )

    def save(self, path: Path) -> None:
        """Write the index as one npz file, which appears whole or not at all."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        header = {"version": _VERSION, "shards": self.shards, "about": self.about}
        with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            try:
                np.savez(
                    file,
                    header=np.frombuffer(json.dumps(header).encode(), np.uint8),
                    names=np.frombuffer(self.names.text, np.uint8),
                    name_ends=self.names.ends,
                    **arrays,
                )
                file.flush()
                temporary.chmod(0o644)  # such files begin as their owner's alone
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read an index back.

        Raises:
            DataError: it is damaged, or of another version of this program.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                header = json.loads(file["header"].tobytes())
                if header["version"] != _VERSION:
                    raise ValueError(f"it is of version {header['version']}")
                return cls(
                    shards=header["shards"],
                    about=header["about"],
                    names=Names.packed(file["names"].tobytes(), file["name_ends"]),
                    **{name: file[name] for name in _ARRAYS},
                )
        except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
            raise DataError(
                f"{path}: cannot be read as an index of shards ({error}). Delete it: it is made "
                "again from the shards."
            ) from error


_ARRAYS = ("shard_bytes", "counts", "offsets", "sizes", "labels")


def split_name(member: str) -> tuple[str, str]:
    """A tar member's key and suffix, as the webdataset package splits them.

    The suffix begins at the first dot of the name's last part: ``a.b/c.d.jpg`` is ``a.b/c`` and
    ``.d.jpg``.
    """
    match = re.fullmatch(r"((?:.*/)?[^./]*)(\..*)?", member, re.DOTALL)
    return (match[1], match[2] or "") if match else (member, "")


def scan_shard(path: Path, shard: str) -> ShardIndex:
    """Find the images of a tar file by reading its headers and labels.

    Args:
        path: the tar file.
        shard: its path relative to the data set's root.

    Raises:
        DataError: it is no tar file, cut off, damaged, or not of the WebDataset layout.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            images = [
                _image_of(path, key, list(members), archive)
                for key, members in groupby(_files(archive, path), lambda m: split_name(m.name)[0])
            ]
            _check_end(path, archive.offset)
    except tarfile.TarError as error:
        raise DataError(f"{path}: is not a tar file ({error}). Fetch or write it again.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}.") from error
    return ShardIndex.of_shard(shard, path.stat().st_size, images)


def _files(archive: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    while True:
        try:
            member = archive.next()
        except tarfile.ReadError:
            if archive.offset:  # some members were whole
                _check_end(path, archive.offset)
            raise
        if member is None:
            return
        if member.isfile():
            yield member


def _check_end(path: Path, end: int) -> None:
    """A tar file cut off between two members reads as a whole one, but for its end."""
    size = path.stat().st_size
    if size < end + END:
        raise DataError(
            f"{path}: is cut off: it has {size} bytes, and its members alone need {end + END}. "
            "Fetch or write it again.",
            flaw=Flaw.TRUNCATED,
        )
    with path.open("rb") as file:
        file.seek(end)
        if any(file.read(END)):
            raise DataError(
                f"{path}: is damaged: no member of a tar file begins at byte {end}. "
                "Fetch or write it again."
            )


def _image_of(
    path: Path, key: str, members: Sequence[tarfile.TarInfo], archive: tarfile.TarFile
) -> ImageMember:
    by_suffix = {split_name(member.name)[1].lower(): member for member in members}
    image = next((m for suffix, m in by_suffix.items() if suffix in IMAGE_SUFFIXES), None)
    label = by_suffix.get(_LABEL_SUFFIX)
    if image is None or label is None:
        raise DataError(
            f"{path}: {key} has members {', '.join(by_suffix)}, but an image (.jpg, .png, ...) and "
            "its class number (.cls) must stand side by side. Archives of other forms, such as "
            "ImageNet's own, are to be unpacked; shard-data writes shards of the folders."
        )
    file = archive.extractfile(label)
    text = file.read(32).strip() if file else b""
    if not text.isdigit():
        raise DataError(f"{path}: {label.name} holds {text!r}, which is no class number")
    return ImageMember(image.name, image.offset_data, image.size, int(text))
