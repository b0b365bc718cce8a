"""Overlays of joint training: a task that an overlay does not name stays as it is."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

__all__ = ["overlaid"]


def overlaid(configs: Sequence[Path]) -> list[str]:
    """Config files as the parser takes them: names, or the text of those that had to be changed.

    The parser merges what two files say of a task, but drops tasks that the later one leaves out.
    They are put into it, empty.

    Args:
        configs: existing files, the later ones win.
    """
    words, known = [], dict[str, list[str]]()
    for path in configs:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        changed = False
        for part, holder in _holders(content):
            before, tasks = known.setdefault(part, []), holder["tasks"]
            changed = changed or any(name not in tasks for name in before)
            holder["tasks"] = {name: {} for name in before} | tasks
            known[part] = list(holder["tasks"])
        words.append(yaml.safe_dump(content, sort_keys=False) if changed else str(path))
    return words


def _holders(content: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The mappings in a config that have tasks, which may be under ``init_args``."""
    for part in ("model", "data"):
        inner = content.get(part)
        inner = inner.get("init_args", inner) if isinstance(inner, dict) else None
        if isinstance(inner, dict) and isinstance(inner.get("tasks"), dict):
            yield part, inner
