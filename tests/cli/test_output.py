import io
import logging
import sys

import pytest

from gmf_platform.callbacks.progress import STEPS
from gmf_platform.cli.output import log_to, rounded


@pytest.fixture(autouse=True)
def own_handlers():
    """Leave the logger as it was."""
    root = logging.getLogger("gmf_platform")
    before = root.handlers[:], root.propagate, root.level
    root.handlers.clear()
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers[:], root.propagate = before[:2]
    root.setLevel(before[2])


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_go_to_what_is_standard_output_then(monkeypatch, tmp_path):
    """A bar takes its place, to put lines above itself."""
    log_to(tmp_path / "log.txt")
    bar = io.StringIO()
    monkeypatch.setattr(sys, "stdout", bar)
    logging.getLogger("gmf_platform.anything").info("said %d", 1)
    assert bar.getvalue() == "said 1\n"
    assert (tmp_path / "log.txt").read_text().endswith(" said 1\n")


def test_a_bar_stands_for_the_lines_of_steps(monkeypatch, tmp_path):
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    log_to(tmp_path / "log.txt")
    logging.getLogger(STEPS).info("step 1/2")
    logging.getLogger("gmf_platform.callbacks.progress").info("validation at step 1")
    assert terminal.getvalue() == "validation at step 1\n"
    assert "step 1/2" in (tmp_path / "log.txt").read_text()


def test_other_processes_than_the_first_say_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("RANK", "1")
    log_to(tmp_path / "log.txt")
    logging.getLogger("gmf_platform.anything").warning("each of a hundred processes says so")
    assert capsys.readouterr() == ("", "")
    assert not (tmp_path / "log.txt").exists()


def test_a_pipe_that_was_closed_does_not_end_the_run(monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    log_to(None)
    monkeypatch.setattr(logging, "raiseExceptions", False)
    monkeypatch.setattr(sys, "stdout", Closed())
    logging.getLogger("gmf_platform").info("nobody hears it")


def test_scores_have_the_digits_of_float32():
    score = {"verb": "fit", "step": 3, "a": 0.30000001192092896, "b": None, "c": float("nan")}
    found = rounded(score | {"d": 0.03846752643585205})
    assert (found["a"], found["d"]) == (0.3, 0.038467526)
    assert {k: found[k] for k in ("verb", "step", "b")} == {"verb": "fit", "step": 3, "b": None}
    assert found["c"] != found["c"]
