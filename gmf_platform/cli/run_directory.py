"""A run's folder: config, checkpoints, logs, scores, and a lock while it is alive."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, TextIO

import yaml

from gmf_platform.errors import UserError

__all__ = ["RunDirectory", "config_differences", "content_hash", "flatten"]

# Where the same run may go on although these differ: how it is carried out, not what it computes.
_MAY_DIFFER = (
    "data.num_workers",
    "data.per_device_batch_size",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.max_steps",
    "trainer.max_epochs",
    "trainer.max_time",
    "trainer.logger",
    "trainer.log_every_n_steps",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.num_sanity_val_steps",
    "trainer.default_root_dir",
    "checkpoint.every_n_steps",
    "checkpoint.max_idle_restarts",
    "throughput",
    "magnitudes",
    "charts",
    "pictures",
    "worst",
    "guard",
    "watchdog",
)


class RunDirectory:
    """``runs/<name>/``.

    Args:
        path: the folder; it is made when the run begins.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.checkpoints = path / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"
        self.previous = self.checkpoints / "previous.ckpt"
        self.best = self.checkpoints / "best.ckpt"
        self.metrics = path / "metrics.jsonl"
        self.log = path / "log.txt"
        self._lock: TextIO | None = None

    def acquire(self) -> None:
        """Take the lock; the system frees it when the process dies, however it dies.

        Raises:
            UserError: another process has it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = (self.path / "lock").open("a+")
        try:
            # A record lock: unlike flock's it is not shared with forked loader workers.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            lock.close()
            raise UserError(
                f"the run {self.path} is alive ({holder}): wait for it, stop it, or begin "
                "another with --name"
            ) from None
        if not _is_file(lock, self.path / "lock"):
            lock.close()
            self.acquire()  # the holder removed the file between our opening and locking it
            return
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        self._lock = lock
        self._remove_unfinished()

    def _remove_unfinished(self) -> None:
        """Remove what a process that was killed while saving left behind."""
        for partial in self.checkpoints.glob(".*.ckpt.*"):
            partial.unlink()
        for partial in self.checkpoints.glob(".step-*"):
            shutil.rmtree(partial)

    def release(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            with suppress(FileNotFoundError):
                (self.path / "lock").unlink()
            self._lock.close()
            self._lock = None

    def set_aside(self) -> Path:
        """Move the folder out of the way, keeping all that is in it."""
        stamp = f"{self.path.name}.{time.strftime('%Y%m%d-%H%M%S')}"
        names = (stamp if number == 0 else f"{stamp}-{number}" for number in count())
        aside = next(path for path in map(self.path.with_name, names) if not path.exists())
        self.path.rename(aside)
        (aside / "lock").unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        return aside

    def scores(self) -> Iterator[dict[str, Any]]:
        """The lines of metrics.jsonl; a half-written last line is passed over."""
        if not self.metrics.is_file():
            return
        for line in self.metrics.read_text().splitlines():
            with suppress(json.JSONDecodeError):
                yield json.loads(line)

    def final_score(self, max_steps: int) -> dict[str, Any] | None:
        """The last line of a fit that reached its end, if one did."""
        done = [s for s in self.scores() if s.get("finished") and s["step"] >= max_steps]
        return done[-1] if done else None

    def record(self, score: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        self.path.mkdir(parents=True, exist_ok=True)
        with self.metrics.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":  # a crash left half a line
                    file.write(b"\n")
            file.write(json.dumps(score).encode() + b"\n")

    def best_or_last(self) -> Path:
        """The checkpoint that ``--run`` stands for.

        Raises:
            UserError: the run has none yet.
        """
        for path in (self.best, self.last):
            if path.exists():
                return path
        raise UserError(f"--run {self.path}: the run has no checkpoint yet")


def config_differences(ours: str, theirs: str) -> list[str]:
    """Keys in which two resolved configs (YAML) differ, save those that may.

    Returns:
        One line a key: ``KEY: stored -> now``.
    """
    new, old = dict(flatten(yaml.safe_load(ours))), dict(flatten(yaml.safe_load(theirs)))
    return [
        f"{key}: {old.get(key, '(not set)')} -> {new.get(key, '(not set)')}"
        for key in sorted({*new, *old})
        if new.get(key) != old.get(key) and not _may_differ(key)
    ]


def _is_file(file: TextIO, path: Path) -> bool:
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())


def _may_differ(key: str) -> bool:
    key = re.sub(r"^data\.tasks\.\w+\.", "data.", key)
    return any(key == allowed or key.startswith(f"{allowed}.") for allowed in _MAY_DIFFER)


def flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Canonical keys of a config, each with its value, which is no mapping."""
    if not isinstance(tree, dict):
        yield prefix, tree
        return
    for key, value in tree.items():
        inner = key != "init_args"
        yield from flatten(value, ".".join(filter(None, (prefix, key))) if inner else prefix)


def content_hash(path: Path) -> str:
    """First 12 hexadecimal digits of the SHA-256 of a file, or of all files of a folder."""
    digest = hashlib.sha256()
    for part in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if part.is_file():
            with part.open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
    return digest.hexdigest()[:12]
