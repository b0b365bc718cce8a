"""Overlays of joint training: a task that one does not name stays; one that is null goes."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

__all__ = ["is_removal", "overlaid"]


def is_removal(key: str, value: str) -> bool:
    """Whether an override takes a task away: ``--data.tasks.det null``."""
    return value == "null" and re.fullmatch(r"(model|data)\.tasks\.\w+", key) is not None


def overlaid(configs: Sequence[Path], removed: Sequence[str] = ()) -> list[str]:
    """Config files as the parser takes them: names, or the text of those that had to be changed.

    The parser merges what two files say of a task, and drops the tasks that the later one leaves
    out. Those are put into it, empty, and the ones that are null are taken out of it.

    Args:
        configs: existing files, the later ones win.
        removed: keys of tasks that are set to null behind all files.
    """
    known: dict[str, list[str]] = {}
    words = []
    for path in configs:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        changed = _completed(content, known)
        words.append(yaml.safe_dump(content, sort_keys=False) if changed else str(path))
    if removed:
        last: dict[str, Any] = {}
        for part, _, name in (key.split(".") for key in removed):
            last.setdefault(part, {"tasks": {}})["tasks"][name] = None
        _completed(last, known)
        words.append(yaml.safe_dump(last, sort_keys=False))
    return words


def _completed(content: Any, known: dict[str, list[str]]) -> bool:
    """Give a config all tasks that there are after it, and remember them; whether it changed."""
    changed = False
    for part, holder in _holders(content):
        before: dict[str, Any] = {name: {} for name in known.get(part, [])}
        tasks = {k: task for k, task in (before | holder["tasks"]).items() if task is not None}
        changed = changed or tasks.keys() != holder["tasks"].keys()
        holder["tasks"], known[part] = tasks, list(tasks)
    return changed


def _holders(content: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The mappings in a config that have tasks, which may be under ``init_args``."""
    for part in ("model", "data"):
        inner = content.get(part) if isinstance(content, dict) else None
        inner = inner.get("init_args", inner) if isinstance(inner, dict) else None
        if isinstance(inner, dict) and isinstance(inner.get("tasks"), dict):
            yield part, inner
