"""Finds unknown keys and class paths in a config, and says where and what is near.

The config parser's own message for a typo is a page of nested types. This check runs before it,
over each source by itself, and names file, line and the nearest known key.
"""

import inspect
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from importlib import import_module
from itertools import groupby

from lightning.pytorch import Trainer

from gmf_platform.cli.sources import Entry, Sources
from gmf_platform.errors import UserError

__all__ = ["check_keys", "parameter_names"]


def check_keys(sources: Sources, top_level: Sequence[str], callbacks: dict[str, type]) -> None:
    """Check each key against the class that it configures.

    Args:
        sources: the config.
        top_level: known keys of the top level.
        callbacks: top-level key -> callback class.

    Raises:
        UserError: for the first unknown key or class path, or a task or data set not named.
    """
    classes: dict[str, type] = {"trainer": Trainer, **callbacks}
    for _, entries in groupby(sources.entries, key=_source):
        _check_source(list(entries), classes, top_level)
    for part in ("model", "data"):
        if part not in classes:
            raise UserError(
                f"the config names no {part}.class_path: an overlay goes behind a task's config, "
                "as in --config seg_ade20k --config OVERLAY"
            )


def _source(entry: Entry) -> str:
    return entry.place.rpartition(":")[0]


def _check_source(
    entries: Sequence[Entry], classes: dict[str, type], top_level: Sequence[str]
) -> None:
    """Check a source's keys against the classes up to here: later ones may change a class."""
    for entry in entries:
        if entry.key.endswith(".class_path"):
            classes[entry.key.removesuffix(".class_path")] = _import(entry)
    for entry in entries:
        owner, _, name = entry.key.rpartition(".")
        if not owner:
            _check(entry, name, top_level, "the config")
        elif owner in classes and name != "class_path":
            owner_class = classes[owner]
            _check(entry, name, parameter_names(owner_class), owner_class.__name__)


def parameter_names(cls: type) -> list[str]:
    """Names that a class's constructor takes, those of its bases included where it passes them."""
    names: list[str] = []
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
        names += [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return [name for name in dict.fromkeys(names) if name != "self"]


def _import(entry: Entry) -> type:
    module_name, _, name = str(entry.value).rpartition(".")
    try:
        module = import_module(module_name)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{entry.place}: {entry.key}: cannot import {entry.value!r} ({error}); a class path "
            "is MODULE.CLASS, e.g. gmf_platform.models.backbones.GroupMixFormer"
        ) from None
    found = getattr(module, name, None)
    if not isinstance(found, type):
        names = getattr(module, "__all__", dir(module))  # dir() lacks what is imported on demand
        known = [n for n in names if isinstance(getattr(module, n, None), type)]
        raise UserError(
            f"{entry.place}: {entry.key}: no class {name!r} in {module_name}{_nearest(name, known)}"
        )
    return found


def _check(entry: Entry, name: str, known: Iterable[str], where: str) -> None:
    known = list(known)
    if name in known:
        return
    raise UserError(
        f"{entry.place}: unknown key {entry.key}: {where} has no {name!r}{_nearest(name, known)}"
    )


def _nearest(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f". It has: {', '.join(sorted(known))}"
