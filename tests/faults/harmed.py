"""A run that can be harmed, mended and gone on with; and what it came to."""

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gmf_platform.models.weights import read_state_dict

CONFIG = Path(__file__).with_name("faults.yaml")
STRATEGIES = {
    "one": (),
    "ddp": ("--config", "strategy/ddp"),
    "fsdp": (
        *("--config", "strategy/fsdp", "--model.backbone.checkpointing", "false"),
        *("--trainer.strategy.sharded_checkpoints", "true"),
    ),
    "zero2": ("--config", "strategy/deepspeed_zero2", "--trainer.strategy.autocast", "none"),
}


@dataclass(frozen=True)
class Life:
    """A start of the command and what became of it.

    Attributes:
        codes: of the ranks; None for one that was killed or left at once.
        said: all that they wrote, the log included.
        began: time of the start.
        ended: time at which the last process was gone.
    """

    codes: tuple
    said: str
    began: float
    ended: float


@dataclass(frozen=True)
class Outcome:
    """All that a run came to which does not depend on the clock."""

    curves: dict
    weights: dict

    def assert_is(self, other):
        """Value by value, bit by bit."""
        assert self.curves == other.curves
        assert self.weights.keys() == other.weights.keys()
        assert not [k for k, t in self.weights.items() if not torch.equal(t, other.weights[k])]


class Run:
    """A run in a folder of its own.

    Args:
        cwd: the folder.
        data: a data set; it may be harmed.
        call: starts processes with a command line.
        under: strategy; all but ``one`` on two processes.
        words: more of the command line.
    """

    def __init__(self, cwd, data, call, *, under, words=()):
        self.cwd, self.data, self.call, self.under = cwd, data, call, under
        self.path = cwd / "runs" / "a"
        self.last = self.path / "checkpoints" / "last.ckpt"
        self.journal = cwd / "journal.txt"
        self.processes = 1 if under == "one" else 2
        config = ("--config", "seg_ade20k", "--config", CONFIG, "--data.root", data)
        self.line = ("fit", *config, *STRATEGIES[under], "--name", "a", *words)

    def start(self, *words, timeout=600):
        """Start the command, and wait until all processes have ended."""
        began = time.time()
        results = self.call(self.processes, *self.line, *words, cwd=self.cwd, timeout=timeout)
        ended = time.time()
        said = [text for result in results if result for text in (result.out, result.err)]
        log = self.path / "log.txt"
        said += [log.read_text()] if log.exists() else []
        codes = tuple(None if result is None else result.code for result in results)
        return Life(codes, "\n".join(said), began, ended)

    def seconds(self, harmed, resumed):
        """From the harm until all had ended; from the next start until as far as before."""
        lines = [line.split() for line in self.journal.read_text().splitlines()]
        before = [(float(at), what) for at, what in lines if float(at) < resumed.began]
        after = [(float(at), what) for at, what in lines if float(at) > resumed.began]
        struck = next((at for at, what in before if not what.isdigit()), None)
        furthest = max((int(what) for _, what in before if what.isdigit()), default=0)
        beyond = [at for at, step in after if int(step) > furthest] or [resumed.ended]
        return {
            "ended": None if struck is None else harmed.ended - struck,
            "caught_up": beyond[0] - resumed.began,
        }

    def outcome(self, curves=None):
        """What it came to; its curves are in its folder if in no other."""
        found = read_scalars(curves or self.path)
        kept = ("train/loss", "val/miou", "lr/decay")
        return Outcome({tag: found[tag] for tag in kept}, read_state_dict(self.last))

    def copy(self, cwd):
        """The same run as it is now, in another folder."""
        shutil.copytree(self.cwd / "runs", cwd / "runs", symlinks=True)
        shutil.copy(self.journal, cwd)
        return Run(cwd, self.data, self.call, under=self.under)


def read_scalars(folder):
    """TensorBoard's curves as TensorBoard shows them: tag -> [(step, value), ...]."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def mount(folder, *options):
    """Mount something on a folder; gives what the system says if it does not."""
    words = ["mount", *map(str, options), str(folder)]
    return subprocess.run(words, capture_output=True, text=True, check=False).stderr.strip()


def make_read_only(folder):
    """Lay a read-only view of a folder over it; what is open for writing stays so."""
    return mount(folder, "--bind", folder) or mount(folder, "-o", "remount,bind,ro")


def take_off(folder):
    """Undo the last mount on a folder; whether there was one."""
    words = ["umount", "--lazy", str(folder)]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def make_writable(folder):
    """Take the read-only view off, if there is one."""
    if folder.is_dir() and os.statvfs(folder).f_flag & os.ST_RDONLY:
        take_off(folder)
