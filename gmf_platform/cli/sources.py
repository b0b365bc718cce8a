"""The config as its files and overrides give it, each key with its place.

Read without torch and before the real parser, for the checks that must answer at once and for
errors that name file and line. Keys are canonical: ``model.init_args.backbone.init_args.variant``
is ``model.backbone.variant``, as on the command line.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gmf_platform.cli.arguments import Arguments
from gmf_platform.errors import UserError

__all__ = ["Entry", "Sources", "as_yaml", "canonical"]

_COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Entry:
    """One key as one source gives it.

    Attributes:
        key: canonical, e.g. ``model.backbone.variant``.
        value: scalar or list; None for a mapping.
        place: ``FILE:LINE`` or ``command line``.
        mapping: the value is a mapping, whose keys are entries of their own.
        inside: the key is inside of a value that is an entry of its own, such as a list.
    """

    key: str
    value: Any
    place: str
    mapping: bool = False
    inside: bool = False


def canonical(key: str) -> str:
    """Drop the ``init_args`` of a dotted key, and the ``+`` that appends to a list."""
    return ".".join(part.removesuffix("+") for part in key.split(".") if part != "init_args")


def as_yaml(value: Any) -> str:
    """A value on one line, as a config has it."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return value or '""'
        case Mapping():
            return "{" + ", ".join(f"{k}: {as_yaml(v)}" for k, v in value.items()) + "}"
        case Sequence():
            return f"[{', '.join(map(as_yaml, value))}]"
    return str(value)


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
            self.entries += _override(key, value)

    def value(self, key: str) -> Any:
        """The value of a canonical key, interpolations resolved; None where none can be told."""
        final = {
            entry.key: entry.value
            for entry in self.entries
            if not entry.mapping and not entry.inside
        }
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

    def is_mapping(self, key: str) -> bool:
        """Whether a key was last set to a mapping."""
        return next((e.mapping for e in reversed(self.entries) if e.key == key), False)

    def is_removed(self, key: str) -> bool:
        """Whether a mapping was set to null behind all that was said of it."""
        said = [e for e in self.entries if e.key == key or e.key.startswith(f"{key}.")]
        return bool(said) and said[-1].key == key and not said[-1].mapping

    def place(self, key: str) -> str:
        """Where a key was last set; empty if nowhere."""
        return next((e.place for e in reversed(self.entries) if e.key == key), "")

    @contextmanager
    def placing(self) -> Iterator[None]:
        """Put the place of a key in front of errors that begin with it."""
        try:
            yield
        except UserError as error:
            key = re.match(r"\w+(\.\w+)*", str(error))
            place = self.place(key[0]) if key else ""
            if place:
                error.args = (f"{place}: {error}", *error.args[1:])
            raise


def _override(key: str, text: str) -> Iterator[Entry]:
    """A key of the command line, and what is inside its value."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        node, value = None, text
    yield Entry(canonical(key), value, _COMMAND_LINE)
    if node is not None:
        yield from _inside(node, (key,), lambda _: _COMMAND_LINE)


def _read(path: Path) -> Iterator[Entry]:
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {_plainly(error)}") from None
    if not isinstance(root, yaml.MappingNode):
        what = "is empty" if root is None else "is a list or a single value"
        raise UserError(f"{path}: {what}; a config is a mapping of keys to values")
    here = Path.cwd()
    shown = path.relative_to(here) if path.is_relative_to(here) else path
    return _walk(root, (), lambda node: f"{shown}:{node.start_mark.line + 1}")


def _plainly(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    """What the YAML parser says, and where, in two lines."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return str(error)
    mark = error.problem_mark
    line = (mark.get_snippet(indent=2, max_length=100) or "").splitlines()
    hint = "; a value with ${...} inside of {} needs quotes" if "${" in "".join(line) else ""
    return "\n".join([f"line {mark.line + 1}: {error.problem}{hint}", *line])


_Place = Callable[[yaml.Node], str]


def _walk(
    node: yaml.MappingNode, above: Sequence[str], place: _Place, *, inside: bool = False
) -> Iterator[Entry]:
    places: dict[str, str] = {}
    for key_node, value_node in node.value:
        keys = (*above, str(key_node.value))
        key = canonical(".".join(keys))
        if keys[-1] in places:
            line = places[keys[-1]].rpartition(":")[2]
            raise UserError(
                f"{place(key_node)}: {key} is there already, in line {line}: YAML would forget that "
                "one; give one of them another name"
            )
        places[keys[-1]] = place(key_node)
        if isinstance(value_node, yaml.MappingNode):
            if keys[-1] != "init_args":
                yield Entry(key, None, place(key_node), mapping=True, inside=inside)
            yield from _walk(value_node, keys, place, inside=inside)
            continue
        value = yaml.SafeLoader("").construct_document(value_node)
        yield Entry(key, value, place(key_node), inside=inside)
        yield from _inside(value_node, keys, place)


def _inside(node: yaml.Node, keys: Sequence[str], place: _Place) -> Iterator[Entry]:
    """The entries inside a value: mappings in a list, and a mapping on the command line."""
    match node:
        case yaml.SequenceNode(value=items):
            for number, item in enumerate(items):
                if isinstance(item, yaml.MappingNode):
                    yield from _walk(item, (*keys, str(number)), place, inside=True)
        case yaml.MappingNode():
            yield from _walk(node, keys, place, inside=True)
