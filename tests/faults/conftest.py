"""Runs to be harmed; which faults are due; and a table of what came of them."""

import shutil
import subprocess
from collections import defaultdict
from contextlib import suppress

import harmed
import pytest

from gmf_platform.distributed import strategies


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
    return [] if third is None else [f"faults: --third {third}, of 0 to 2"]


def pytest_generate_tests(metafunc):
    rounds = metafunc.config.getoption("rounds", default=1)
    if rounds > 1 and "record_fault" in metafunc.fixturenames:
        metafunc.fixturenames.append("round")
        metafunc.parametrize("round", range(rounds))


@pytest.hookimpl(tryfirst=True)  # before -m looks at marks
def pytest_collection_modifyitems(config, items):
    ours = [item for item in items if item.path.parent == harmed.CONFIG.parent]
    for item in ours:
        item.add_marker(pytest.mark.fault)
    third = chosen_third(config)
    if third is not None:
        left_out = [item for number, item in enumerate(ours) if number % 3 != third]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter):
    """A line for each fault: tries, how many went as they must, seconds."""
    tries = defaultdict(list)
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties if report.when == "call" else ():
                if name == "fault":
                    tries[value["name"]].append(value | {"ok": outcome == "passed"})
    if not tries:
        return
    terminalreporter.section("faults")
    terminalreporter.write_line("| fault | as expected | all ended | caught up |")
    terminalreporter.write_line("|---|---|---|---|")
    for fault, found in tries.items():
        good = f"{sum(each['ok'] for each in found)} of {len(found)}"
        ended, caught_up = (_range([each[key] for each in found]) for key in ("ended", "caught_up"))
        terminalreporter.write_line(f"| {fault} | {good} | {ended} | {caught_up} |")


def _range(seconds):
    known = [value for value in seconds if value is not None]
    if not known:
        return ""
    low, high = f"{min(known):.1f}", f"{max(known):.1f}"
    return f"{low} s" if low == high else f"{low} to {high} s"


@pytest.fixture
def record_fault(record_property):
    """Put a try into the table, with seconds from the harm to the end, and to catching up."""

    def record(name, ended=None, caught_up=None):
        record_property("fault", {"name": name, "ended": ended, "caught_up": caught_up})

    return record


@pytest.fixture(scope="session", autouse=True)
def prepared():
    """What forked processes should not each import for themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        with suppress(ImportError):
            strategies._prepare_import()
        yield


@pytest.fixture
def run(sample_ade20k, call_processes, monkeypatch, tmp_path):
    """Make a run that can be harmed, with data of its own: ``run("ddp", "--KEY", "VALUE")``."""

    def make(under, *words):
        if under == "zero2":
            pytest.importorskip("deepspeed", reason="needs deepspeed: the extra of that name")
        data = shutil.copytree(sample_ade20k, tmp_path / "data")
        monkeypatch.setenv("HARMED_FILE", str(min(data.glob("images/training/*.jpg"))))
        return harmed.Run(tmp_path, data, call_processes, under=under, words=words)

    return make


@pytest.fixture(scope="session")
def undisturbed(sample_ade20k, call_processes, tmp_path_factory):
    """What a run under a strategy comes to if nothing happens; made once."""
    made = {}

    def find(under):
        if under not in made:
            cwd = tmp_path_factory.mktemp("undisturbed")
            whole = harmed.Run(cwd, sample_ade20k, call_processes, under=under)
            with pytest.MonkeyPatch.context() as patch:
                patch.delenv("HARM", raising=False)
                life = whole.start()
            assert set(life.codes) == {0}, life.said
            made[under] = whole.outcome()
        return made[under]

    return find


@pytest.fixture
def disk(tmp_path):
    """Put the folder of the runs on another disk: ``disk("small")``; skips where it may not."""
    folder = tmp_path / "runs"

    def put(kind):
        folder.mkdir()
        match kind:
            case "plain":
                return
            case "small":
                refused = harmed.mount(folder, "-t", "tmpfs", "-o", "size=64m", "tmpfs")
            case "mounted":
                refused = harmed.mount(folder, "--bind", folder)
            case "read-only":
                refused = harmed.make_read_only(folder)
        if refused:
            pytest.skip(f"needs to mount: {refused}")

    yield put
    while harmed.take_off(folder):
        pass


@pytest.fixture
def mend(sample_ade20k, tmp_path, monkeypatch):
    """Undo what was done to disk and data, and let the harm not be done again."""

    def put_right():
        monkeypatch.delenv("HARM", raising=False)
        harmed.make_writable(tmp_path / "runs")
        (tmp_path / "runs" / "filler").unlink(missing_ok=True)
        shutil.copytree(sample_ade20k, tmp_path / "data", dirs_exist_ok=True)

    return put_right
