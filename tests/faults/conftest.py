"""Runs that are harmed, mended and gone on with; which faults are due; and a table of them."""

import shutil
import subprocess
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gmf_platform.distributed import strategies
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


def pytest_addoption(parser):
    group = parser.getgroup("faults")
    group.addoption("--third", help="every third fault: from 0, 1 or 2, or as `commit` has it")
    group.addoption("--rounds", type=int, default=1, help="how often each fault is tried")


def chosen_third(config):
    """The third that was asked for, by its number or by the commit's hash; None for all."""
    asked = config.getoption("third", default=None)
    if asked != "commit":
        return None if asked is None else int(asked)
    git = ("git", "-C", str(config.rootpath), "rev-parse", "HEAD")
    return int(subprocess.run(git, capture_output=True, text=True, check=True).stdout, 16) % 3


def pytest_report_header(config):
    third = chosen_third(config)
    return [] if third is None else [f"faults: those of --third {third}; all without it"]


def pytest_generate_tests(metafunc):
    rounds = metafunc.config.getoption("rounds", default=1)
    if rounds > 1:
        metafunc.fixturenames.append("round")
        metafunc.parametrize("round", range(rounds))


def pytest_collection_modifyitems(config, items):
    ours = [item for item in items if item.path.parent == CONFIG.parent]
    for item in ours:
        item.add_marker(pytest.mark.fault)
    third = chosen_third(config)
    if third is not None:
        left_out = [item for number, item in enumerate(ours) if number % 3 != third]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter):
    """A line for each fault: tries, how many went well, seconds."""
    tries = defaultdict(list)
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties:
                if name == "fault":
                    tries[value["fault"]].append(value | {"ok": outcome == "passed"})
    if not tries:
        return
    terminalreporter.section("faults")
    terminalreporter.write_line("| fault | tries | as expected | ended after s | caught up after s |")
    terminalreporter.write_line("|---|---|---|---|---|")
    for fault, values in tries.items():
        good = sum(value["ok"] for value in values)
        ended, caught_up = (_range([v[key] for v in values]) for key in ("ended", "caught_up"))
        terminalreporter.write_line(
            f"| {fault} | {len(values)} | {good} | {ended} | {caught_up} |"
        )


def _range(seconds):
    known = [value for value in seconds if value is not None]
    if not known:
        return ""
    low, high = f"{min(known):.1f}", f"{max(known):.1f}"
    return low if low == high else f"{low} to {high}"


@dataclass(frozen=True)
class Life:
    """A start of the command and what became of it.

    Attributes:
        codes: of the ranks; None for one that was killed or left at once.
        said: all that they wrote, the log included.
        began: time of the start.
        ended: time at which the last process was gone.
    """

    codes: list
    said: str
    began: float
    ended: float


class Job:
    """A run in a folder of its own, with a copy of the data of its own."""

    def __init__(self, cwd, data, call, monkeypatch, under="ddp", words=()):
        self.cwd, self.call, self.monkeypatch = cwd, call, monkeypatch
        self.run_folder = cwd / "runs" / "a"
        self.processes = 1 if under == "one" else 2
        config = ("--config", "seg_ade20k", "--config", CONFIG, "--data.root", data)
        self.line = ("fit", *config, *STRATEGIES[under], "--name", "a", *words)

    @property
    def last(self):
        return self.run_folder / "checkpoints" / "last.ckpt"

    def start(self, harm="", *words, timeout=150):
        """Start the command, and wait until it has ended."""
        self.monkeypatch.setenv("HARM", harm)
        began = time.time()
        line = (*self.line, *words)
        results = self.call(self.processes, *line, cwd=self.cwd, timeout=timeout)
        ended = time.time()
        log = self.run_folder / "log.txt"
        said = [text for result in results if result for text in (result.out, result.err)]
        said += [log.read_text()] if log.exists() else []
        codes = [None if result is None else result.code for result in results]
        return Life(codes, "\n".join(said), began, ended)

    def journal(self):
        """What the saboteur noted: (time, deed or step)."""
        path = self.cwd / "journal.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(float(at), what) for at, what in (line.split() for line in lines)]

    def seconds(self, harmed, resumed):
        """From the harm until all had ended; from the next start until as far as before."""
        before = [e for e in self.journal() if e[0] < resumed.began]
        after = [e for e in self.journal() if e[0] > resumed.began and e[1].isdigit()]
        struck = next((at for at, what in before if not what.isdigit()), None)
        furthest = max((int(what) for _, what in before if what.isdigit()), default=0)
        beyond = [at for at, step in after if int(step) > furthest] or [resumed.ended]
        return {
            "ended": None if struck is None else harmed.ended - struck,
            "caught_up": beyond[0] - resumed.began,
        }

    def outcome(self):
        """All that a run came to which does not depend on the clock."""
        curves = read_scalars(self.run_folder)
        return SimpleNamespace(
            curves={tag: curves[tag] for tag in ("train/loss", "val/miou", "lr/decay")},
            weights=read_state_dict(self.last),
        )


def read_scalars(run):
    """TensorBoard's curves of a run as TensorBoard shows them: tag -> [(step, value), ...]."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


@pytest.fixture(scope="session", autouse=True)
def prepared():
    """What forked processes should not each import for themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        if "zero2" in STRATEGIES:
            try:
                strategies._prepare_import()
            except ImportError:
                pass
        yield


@pytest.fixture
def job(sample_ade20k, call_processes, monkeypatch, tmp_path):
    """Make a run that can be harmed: ``job("ddp", "--data.num_workers", "1")``."""

    def make(under="ddp", *words):
        data = shutil.copytree(sample_ade20k, tmp_path / "data")
        monkeypatch.setenv("HARMED_FILE", str(min(data.glob("images/training/*.jpg"))))
        return Job(tmp_path, data, call_processes, monkeypatch, under, words)

    return make


@pytest.fixture(scope="session")
def undisturbed(sample_ade20k, call_processes, tmp_path_factory):
    """What the run under a strategy comes to that nothing happens to; made once."""
    made = {}

    def find(under):
        if under not in made:
            with pytest.MonkeyPatch.context() as patch:
                cwd = tmp_path_factory.mktemp("undisturbed")
                run = Job(cwd, sample_ade20k, call_processes, patch, under)
                life = run.start()
                assert life.codes == [0] * run.processes, life.said
                made[under] = run.outcome()
        return made[under]

    return find


@pytest.fixture
def mount():
    """Mount something, for the time of the test; skips it where that is not allowed."""
    mounted = []

    def at(folder, *options):
        folder.mkdir(parents=True, exist_ok=True)
        words = ["mount", *map(str, options), str(folder)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"needs to mount: {done.stderr.strip()}")
        mounted.append(folder)

    yield at
    for folder in reversed(mounted):
        subprocess.run(["umount", "--lazy", folder], check=True)


def is_as(found, expected):
    """Assert that a run came to the same as another one, value by value."""
    assert found.curves == expected.curves
    assert found.weights.keys() == expected.weights.keys()
    differ = [key for key in found.weights if not torch.equal(found.weights[key], expected.weights[key])]
    assert not differ
