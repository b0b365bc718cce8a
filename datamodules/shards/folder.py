"""A folder that shards are being written to: what was written there, and what is still to be."""

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datamodules.shards.index import ShardIndex
from datamodules.shards.samples import Split, find_shards, index_path, unfinished_path
from gmf_platform.errors import UserError

__all__ = ["ShardFolder", "temporary_of", "writing"]


class ShardFolder:
    """The place of a split's shards, and what is known of them there.

    Args:
        root: folder of the shards.
        split: name of the split.
        about: what tells these shards from others: ``name``, ``images``, ``shards``, ``seed``,
            ``class_names``, and ``content``, a digest of the images' keys and labels.

    Attributes:
        names: paths of the shards relative to the root.
        shards: their paths.
    """

    def __init__(self, root: Path, split: Split, about: dict[str, Any]) -> None:
        self.root, self.split, self.about = root, split, about
        self.index, self.unfinished = index_path(root, split), unfinished_path(root, split)
        self.names = _names(split, about)
        self.shards = [root / name for name in self.names]

    def clear(self) -> None:
        """Delete the shards that were written here, and no others.

        The index goes first, so that a part never passes for the whole.
        """
        about = self._found()
        if about is None:
            return
        with writing(self.root):
            self.index.unlink(missing_ok=True)
            for name in _names(self.split, about):
                (self.root / name).unlink(missing_ok=True)
                temporary_of(self.root / name).unlink(missing_ok=True)
            self.unfinished.unlink(missing_ok=True)

    def finished(self) -> ShardIndex | None:
        """The index, if these very shards are there and whole; None if some are to be written.

        Raises:
            UserError: other shards are there.
        """
        about = self._found()
        if about is not None:
            self._refuse_others(about)
        elif find_shards(self.root, self.split):
            self._refuse_strange()
        if self.unfinished.is_file() or not self.index.is_file():
            return None
        index = ShardIndex.load(self.index)
        sizes = [path.stat().st_size if path.is_file() else 0 for path in self.shards]
        return index if sizes == index.shard_bytes.tolist() else None

    def missing(self) -> list[int]:
        """The numbers of the shards that are not there."""
        return [i for i, path in enumerate(self.shards) if not path.is_file()]

    def begin(self) -> None:
        """Make the folder, and mark the shards in it as unfinished."""
        with writing(self.root):
            (self.root / self.split).mkdir(parents=True, exist_ok=True)
            temporary = temporary_of(self.unfinished)
            temporary.write_text(json.dumps(self.about, indent=1), encoding="utf-8")
            temporary.replace(self.unfinished)
            self.index.unlink(missing_ok=True)

    def finish(self, index: ShardIndex) -> None:
        """Write the index: the shards are complete."""
        with writing(self.root):
            ShardIndex.joined([index], self.about).save(self.index)
            self.unfinished.unlink()

    def _found(self) -> dict[str, Any] | None:
        """What was written here, wholly or in part; None if nothing was."""
        if self.unfinished.is_file():
            found: dict[str, Any] = json.loads(self.unfinished.read_text(encoding="utf-8"))
            return found
        if not self.index.is_file():
            return None
        about = ShardIndex.load(self.index).about
        if "content" not in about:  # an index that was made from other people's shards
            self._refuse_strange()
        return about

    def _refuse_others(self, found: dict[str, Any]) -> None:
        if found == self.about:
            return
        told = [
            key for key in ("name", "images", "shards", "seed") if found[key] != self.about[key]
        ]
        said = ", ".join(f"{key} {found[key]} in place of {self.about[key]}" for key in told)
        raise UserError(
            f"{self.root}: holds other shards of {self.split} ({said or 'of other images'}). Name "
            "another folder, or --overwrite deletes them."
        )

    def _refuse_strange(self) -> None:
        raise UserError(
            f"{self.root}: holds shards of {self.split} that shard-data has not written: name "
            "another folder"
        )


def _names(split: Split, about: dict[str, Any]) -> list[str]:
    return [f"{split}/{about['name']}-{split}-{i:06d}.tar" for i in range(about["shards"])]


def temporary_of(path: Path) -> Path:
    """The name of a file while it is being written."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what a disk refuses into advice.

    Args:
        path: what is being written.

    Raises:
        UserError: the disk is full, or the path cannot be written to.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{path}: the disk is full. Make room, and the same command goes on."
            ) from error
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
