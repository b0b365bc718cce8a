"""The verbs, their options and the config's top-level keys: scripts of users depend on them.

What is added is written into surface.txt by `UPDATE_SURFACE=1 pytest tests/cli/test_surface.py`, and
committed with the change. What is taken away or renamed breaks somebody's scripts: it needs an
entry in CHANGELOG.md, and the old word should answer with the new one for a release.
"""

import argparse
import os
from pathlib import Path

from gmf_platform.cli.config_check import CALLBACKS, TOP_LEVEL
from gmf_platform.cli.main import VERBS

FILE = Path(__file__).with_name("surface.txt")

# Verbs that have verbs of their own.
INNER = {
    "benchmark": ["backbone", "step", "data"],
    "config": ["show"],
    "new": ["seg", "det", "cls"],
}


def words(parser):
    """Options with what they take, and positional arguments."""
    for action in parser._actions:
        choices = "{" + ",".join(action.choices) + "}" if action.choices else ""
        takes = "" if action.nargs == 0 else action.metavar or choices or action.dest.upper()
        more = " ..." if action.nargs in ("+", "*") else ""
        yield f"{action.option_strings[-1] if action.option_strings else ''} {takes}".strip() + more


def surface(gmf, monkeypatch):
    said = []
    monkeypatch.setattr(argparse.ArgumentParser, "format_help", lambda p: said.append(p) or "")
    lines = []
    for verb in VERBS:
        for command in ([verb], *([verb, inner] for inner in INNER.get(verb, ()))):
            result = gmf(*command, "--help")
            assert result.code == 0, result.err
            lines += [" ".join(command), *(f"  {word}" for word in sorted(words(said.pop())))]
    lines += ["keys", *(f"  {key}" for key in TOP_LEVEL)]
    lines += ["callbacks", *(f"  {key}: {path}" for key, path in CALLBACKS.items())]
    return "\n".join(lines) + "\n"


def test_surface(gmf, monkeypatch):
    now = surface(gmf, monkeypatch)
    if os.environ.get("UPDATE_SURFACE"):
        FILE.write_text(now)
    assert now == FILE.read_text(), "see the head of this file"
