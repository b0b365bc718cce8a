"""The config as its files and overrides give it, each key with its place.

Read without torch and before the real parser, for the checks that must answer at once and for
errors that name file and line. Keys are canonical: ``model.init_args.backbone.init_args.variant``
is ``model.backbone.variant``, as on the command line.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gmf_platform.cli.arguments import Arguments
from gmf_platform.errors import UserError

__all__ = ["Entry", "Sources", "canonical"]


@dataclass(frozen=True)
class Entry:
    """One key as one source gives it.

    Attributes:
        key: canonical, e.g. ``model.backbone.variant``.
        value: scalar or list; None for a mapping.
        place: ``FILE:LINE`` or ``command line``.
        mapping: the value is a mapping, whose keys are entries of their own.
    """

    key: str
    value: Any
    place: str
    mapping: bool = False


def canonical(key: str) -> str:
    """Drop the ``init_args`` of a dotted key."""
    return ".".join(part for part in key.split(".") if part != "init_args")


class Sources:
    """All entries of a command line, files first.

    Args:
        arguments: the parsed command line.

    Raises:
        UserError: a file that is not YAML, or no mapping.
    """

    def __init__(self, arguments: Arguments) -> None:
        self.entries: list[Entry] = []
        for path in arguments.configs:
            self.entries += _read(path)
        for key, value in arguments.overrides:
            parsed = _scalar(value)
            self.entries.append(Entry(canonical(key), parsed, "command line"))

    def value(self, key: str) -> Any:
        """The value of a canonical key, interpolations resolved; None where none can be told."""
        final = {entry.key: entry.value for entry in self.entries if not entry.mapping}
        if key not in final:
            return None
        try:
            tree = OmegaConf.create({})
            for name, value in final.items():
                if isinstance(value, str):
                    value = re.sub(r"\$\{[^}]*\}", lambda m: canonical(m[0]), value)
                OmegaConf.update(tree, name, value, force_add=True)
            return OmegaConf.select(tree, key)
        except OmegaConfBaseException:
            return None

    def is_removed(self, key: str) -> bool:
        """Whether a mapping was set to null behind all that was said of it."""
        said = [e for e in self.entries if e.key == key or e.key.startswith(f"{key}.")]
        return bool(said) and said[-1].key == key and not said[-1].mapping

    def place(self, key: str) -> str:
        """Where a key was last set; empty if nowhere."""
        return next((e.place for e in reversed(self.entries) if e.key == key), "")


def _scalar(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _read(path: Path) -> list[Entry]:
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(root, yaml.MappingNode):
        what = "is empty" if root is None else "is a list or a single value"
        raise UserError(f"{path}: {what}; a config is a mapping of keys to values")
    return list(_walk(root, (), path))


def _walk(node: yaml.MappingNode, above: Sequence[str], path: Path) -> Iterator[Entry]:
    lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        keys = (*above, str(key_node.value))
        line = key_node.start_mark.line + 1
        place = f"{path}:{line}"
        if keys[-1] in lines:
            raise UserError(
                f"{place}: {canonical('.'.join(keys))} is there already, in line {lines[keys[-1]]}: "
                "YAML would forget that one; give one of them another name"
            )
        lines[keys[-1]] = line
        if not isinstance(value_node, yaml.MappingNode):
            value = yaml.SafeLoader("").construct_document(value_node)
            yield Entry(canonical(".".join(keys)), value, place)
            continue
        if keys[-1] != "init_args":
            yield Entry(canonical(".".join(keys)), None, place, mapping=True)
        yield from _walk(value_node, keys, path)
