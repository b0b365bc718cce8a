"""The verbs, their options and the config's top-level keys: scripts of users depend on them.

What is added is written into surface.txt by `UPDATE_SURFACE=1 pytest tests/cli/test_surface.py`, and
committed with the change. What is taken away or renamed breaks somebody's scripts: it needs an
entry in CHANGELOG.md, and the old word should answer with the new one for a release.
"""

import os
import re
from pathlib import Path

from gmf_platform.cli.config_check import CALLBACKS, TOP_LEVEL
from gmf_platform.cli.main import VERBS

FILE = Path(__file__).with_name("surface.txt")

# Verbs that have verbs of their own.
INNER = {"config": ["show"], "new": ["seg", "det", "cls"]}


def words(help_text):
    """Options with what they take, and positional arguments."""
    text = re.sub(r"\n {3,}(?=[A-Za-z`(])", "  ", help_text)  # explanations on lines of their own
    for line in text.splitlines():
        option = re.match(r"  (?:-\w, )?(--[\w-]+(?: [A-Z\[{][\w.{},|\[\] ]*?)?)(?:  |$)", line)
        if option:
            yield option[1].rstrip()
    positional = re.search(r"positional arguments:\n(.*?)(?:\n\n|$)", help_text, re.DOTALL)
    yield from re.findall(r"^  ([\w{},]+)", positional[1], re.MULTILINE) if positional else ()


def surface(gmf):
    lines = []
    for verb in VERBS:
        for command in ([verb], *([verb, inner] for inner in INNER.get(verb, ()))):
            result = gmf(*command, "--help")
            assert result.code == 0, result.err
            lines += [" ".join(command), *(f"  {word}" for word in sorted(set(words(result.out))))]
    lines += ["keys", *(f"  {key}" for key in TOP_LEVEL)]
    lines += ["callbacks", *(f"  {key}: {path}" for key, path in CALLBACKS.items())]
    return "\n".join(lines) + "\n"


def test_surface(gmf, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    now = surface(gmf)
    if os.environ.get("UPDATE_SURFACE"):
        FILE.write_text(now)
    assert now == FILE.read_text(), "see the head of this file"


def test_words_are_found():
    text = "usage: x\n\npositional arguments:\n  source      file\n  {a,b}\n\noptions:\n"
    text += (
        "  -h, --help  show\n  --worst N   images\n  --images DIR [DIR ...]\n              of it\n"
    )
    found = ["--help", "--worst N", "--images DIR [DIR ...]", "source", "{a,b}"]
    assert list(words(text)) == found
