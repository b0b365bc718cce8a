"""The fenced blocks of a page, and the command lines in them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", ROOT / "slurm" / "README.md", *(ROOT / "docs").rglob("*.md"))
)

_PROGRAMS = [
    "git",
    "make",
    "pip",
    "python",
    "salloc",
    "sacct",
    "sbatch",
    "scancel",
    "scontrol",
    "sinfo",
    "squeue",
    "srun",
    "tail",
    "tar",
    "tensorboard",
    "torchrun",
    "source",
    "cd",
    "export",
    "touch",
]
"""What a line of a block without a language begins with if it is a command."""

_FENCE = re.compile(r"^( *)```(\w*)$")
_MARKER = re.compile(r"<!-- not run: (.+) -->")


@dataclass(frozen=True)
class Command:
    """A command line.

    Attributes:
        place: ``PAGE:LINE``.
        words: of the line, behind its settings of the environment.
        environment: what it begins with, as ``NAME=VALUE``.
        output: the file that its output goes to.
    """

    place: str
    words: list[str]
    environment: dict[str, str]
    output: str | None


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: relative to the repository.
        line: of its first line in the page, from 1.
        language: as it is written; empty: none.
        text: without the fences and their indentation.
        reason: why it is not run, from the comment above it.
    """

    page: str
    line: int
    language: str
    text: str
    reason: str | None

    @property
    def place(self):
        return f"{self.page}:{self.line}"

    @property
    def is_commands(self):
        first = self.text.split(maxsplit=1)[0] if self.text.strip() else ""
        return self.language == "bash" or (not self.language and first in _PROGRAMS)

    @property
    def commands(self):
        """Its command lines, those that go on with a backslash in one."""
        found, line = [], self.line
        for part in re.split(r"(?<!\\)\n", self.text):
            words = shlex.split(part.replace("\\\n", " "), comments=True)
            if words:
                found.append(_command(f"{self.page}:{line}", words))
            line += part.count("\n") + 1
        return found


def blocks(page):
    """The fenced blocks of a page, in order.

    Args:
        page: relative to the repository.
    """
    found, reason, start = [], None, None
    lines = (ROOT / page).read_text().splitlines()
    for number, line in enumerate(lines, 1):
        fence = _FENCE.match(line)
        if start is None and fence:
            start, indent, language = number + 1, len(fence[1]), fence[2]
        elif start is not None and line.strip() == "```":
            text = "\n".join(one[indent:] for one in lines[start - 1 : number - 1])
            found.append(Block(page, start, language, text, reason))
            start = reason = None
        elif start is None and line.strip():
            marker = _MARKER.search(line)
            reason = marker[1] if marker else None
    return found


def _command(place, words):
    environment, output = {}, None
    while words and re.match(r"[A-Z_]+=", words[0]):
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    if ">" in words:
        output = words[words.index(">") + 1]
        words = words[: words.index(">")]
    return Command(place, words, environment, output)
