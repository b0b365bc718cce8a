"""Overlays of joint training: a task that an overlay does not name stays as it is."""

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

    The parser merges what two files say of a task, but drops tasks that the later one leaves out.
    They are put into it, empty. On its command line it takes no null for one.

    Args:
        configs: existing files, the later ones win.
        removed: keys of tasks that are set to null behind all files.
    """
    known: dict[str, dict[str, Any]] = {}
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


def _completed(content: dict[str, Any], known: dict[str, dict[str, Any]]) -> bool:
    """Add the tasks known from before to a config, and to those known its own; whether any were."""
    changed = False
    for part, holder in _holders(content):
        before, tasks = known.get(part, {}), holder["tasks"]
        changed = changed or not before.keys() <= tasks.keys()
        holder["tasks"] = before | tasks
        known[part] = {name: None if x is None else {} for name, x in holder["tasks"].items()}
    return changed


def _holders(content: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The mappings in a config that have tasks, which may be under ``init_args``."""
    for part in ("model", "data"):
        inner = content.get(part) if isinstance(content, dict) else None
        inner = inner.get("init_args", inner) if isinstance(inner, dict) else None
        if isinstance(inner, dict) and isinstance(inner.get("tasks"), dict):
            yield part, inner
