"""Checkpoints that are whole or not there, as one file or as a folder of shards."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.distributed.checkpoint.api import CheckpointException

from gmf_platform.distributed.strategies import saves_folders

__all__ = ["AtomicCheckpointIO", "keep_as", "save_checkpoint"]


_OF_A_WRITER = re.compile(r"iostream error|inline_container|PytorchStreamWriter")
"""How torch says that a file could not be written, without a word why."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name, forces it to disk, and renames.

    A run that is killed while saving leaves the checkpoint before untouched.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(target)
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def save_checkpoint(trainer: Trainer, target: Path) -> None:
    """Save the state of a run under a name, whole or not at all; all processes call it.

    What had the name before is kept as ``previous.ckpt`` beside it.

    Strategies that write a folder write it under a name of its own; when all processes have
    written, ``target`` becomes a link to it. What no link leads to any more is removed.

    Args:
        trainer: with its strategy.
        target: a name ending in ``.ckpt``.

    Raises:
        OSError: the disk does not take it.
    """
    if trainer.is_global_zero and target.exists():
        keep_as(target, target.with_name("previous.ckpt"))
    if not saves_folders(trainer.strategy):
        _save(trainer, target)
        return
    folder = Path(trainer.strategy.broadcast(str(_free_name(target, trainer.global_step))))
    unfinished = folder.with_name(f".{folder.name}")
    _save(trainer, unfinished)
    trainer.strategy.barrier()
    if trainer.is_global_zero:
        _sync_to_disk(unfinished)
        unfinished.replace(folder)
        _point(target, folder.name)
        _remove_unlinked(target.parent)
    trainer.strategy.barrier()


def _save(trainer: Trainer, path: Path) -> None:
    """Save, and raise what the system said where a library raises something else in its place.

    torch.save goes on to write the file's end after an error, which fails too, and differently;
    torch's writer of shards packs up what each process met; DeepSpeed has torch open its files,
    which then says that a stream failed.
    """
    try:
        trainer.save_checkpoint(path, weights_only=False)
    except (Exception, CheckpointException) as error:
        errors = list(_behind(error))
        said = next((e for e in errors if isinstance(e, OSError) and e.errno), None)
        if said is None and any(_OF_A_WRITER.search(str(e)) for e in errors):
            said = _asked(path.parent)
        if said is None:
            raise
        raise OSError(said.errno, said.strerror, str(path)) from error


def _asked(folder: Path) -> OSError | None:
    """What the disk says to a file: one that is full is so to the last block."""
    try:
        with TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error
    return None


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    """An error and all that it came from."""
    while error is not None:
        yield error
        if isinstance(error, CheckpointException):
            for inner, _ in error.failures.values():
                yield from _behind(inner)
        error = error.__cause__ or error.__context__


def keep_as(source: Path, target: Path) -> None:
    """Give a checkpoint a second name, replacing what had it; copied where links do not work."""
    if source.is_symlink():
        _point(target, str(source.readlink()))
        _remove_unlinked(target.parent)
        return
    temporary = _beside(target)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copy2(source, temporary)
    temporary.replace(target)


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}")


def _free_name(target: Path, step: int) -> Path:
    """A folder of this step: a step is saved twice, before and after its validation."""
    first = target.with_name(f"step-{step:08d}")
    return first if not first.exists() else target.with_name(f"step-{step:08d}-validated")


def _point(target: Path, name: str) -> None:
    temporary = _beside(target)
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(name)
    temporary.replace(target)


def _remove_unlinked(parent: Path) -> None:
    kept = {path.readlink().name for path in parent.iterdir() if path.is_symlink()}
    for path in parent.iterdir():
        ours = path.name.lstrip(".").startswith("step-") and not path.is_symlink()
        if ours and path.is_dir() and path.name not in kept:
            shutil.rmtree(path)


def _sync_to_disk(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
