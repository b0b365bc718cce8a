"""From a class path in a config to the class's signature, or to what it should have been."""

import inspect
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from importlib import import_module

from gmf_platform.cli.class_source import find_class, find_spec, module_names, read_module
from gmf_platform.cli.signatures import Parameter, Signature, read_signature
from gmf_platform.cli.sources import Entry
from gmf_platform.errors import UserError

__all__ = ["imported_signature", "nearest", "resolve_class"]

_HOMES = (
    "gmf_platform.tasks",
    "gmf_platform.models.backbones",
    "gmf_platform.models.heads",
    "gmf_platform.models.losses",
    "gmf_platform.optim",
    "gmf_platform.optim.balancing",
    "gmf_platform.evaluation",
    "gmf_platform.callbacks",
    "gmf_platform.distributed",
    "datamodules",
)
"""Where the classes of ours are that configs name."""

_OURS = ("gmf_platform", "datamodules")
"""Packages whose source shows all their classes; others may make some while they are imported."""


def resolve_class(entry: Entry) -> Signature:
    """The signature of the class that an entry names.

    Raises:
        UserError: there is no such module or class; the nearest is named.
    """
    path = str(entry.value)
    signature = read_signature(path)
    if signature is not None:
        return signature
    said = f"{entry.place}: {entry.key}: "
    module_name, _, name = path.rpartition(".")
    if not module_name or find_spec(module_name) is None:
        raise UserError(
            f"{said}no class {path!r}{_nearest_path(path)}\na class path is MODULE.CLASS, e.g. "
            "gmf_platform.models.backbones.GroupMixFormer"
        )
    known = _class_names(module_name)
    if module_name.partition(".")[0] not in _OURS:
        try:
            inside = vars(import_module(module_name))
        except Exception as error:  # noqa: BLE001 - a user's module may fail in any way
            raise UserError(
                f"{said}cannot import {module_name}: {type(error).__name__}: {error}"
            ) from None
        if isinstance(inside.get(name), type):
            return imported_signature(inside[name])
        known = [n for n, value in inside.items() if isinstance(value, type) and n[0] != "_"]
    elsewhere = [] if _near(name, known) else _near(name, _homes())
    hint = f"; did you mean {_homes()[elsewhere[0]]!r}?" if elsewhere else nearest(name, known)
    raise UserError(f"{said}no class {name!r} in {module_name}{hint}")


def imported_signature(cls: type) -> Signature:
    """The signature of a class that is imported, for those whose source does not tell.

    As in the source, parameters of bases follow where the class passes them on.
    """
    found: dict[str, Parameter] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
        for p in parameters:
            if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name != "self":
                default = None if p.default is p.empty else repr(p.default)
                found.setdefault(p.name, Parameter(p.name, ("any",), default))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    summary = " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())
    bases = tuple(f"{base.__module__}.{base.__qualname__}" for base in cls.__mro__)
    return Signature(bases[0], summary, found, bases)


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of a sentence: the nearest of some names, or else all of them."""
    near = _near(name, known)
    return f"; did you mean {near[0]!r}?" if near else f". It has: {', '.join(sorted(known))}"


def _near(name: str, known: Iterable[str]) -> list[str]:
    return get_close_matches(name, list(known), n=1, cutoff=0.6)


def _homes() -> dict[str, str]:
    """Classes of ours by name, with their paths."""
    return {name: f"{home}.{name}" for home in _HOMES for name in _class_names(home)}


def _nearest_path(path: str) -> str:
    """The same for a path whose module is not there: a class of ours by its name, or a module."""
    name = path.rpartition(".")[2]
    ours = _homes()
    near = get_close_matches(name, ours, n=1, cutoff=0.8)
    if near:
        return f"; did you mean {ours[near[0]]!r}?"
    package, *parts = path.split(".")
    known, whole = module_names(""), ""
    for part in [package, *parts[:-1]]:
        if part not in known:
            near = get_close_matches(part, known, n=1, cutoff=0.6)
            where = f"no module {part!r}" + (f" in {whole}" if whole else "")
            return f" ({where}" + (f"; did you mean {near[0]!r}?)" if near else ")")
        whole = f"{whole}.{part}".lstrip(".")
        known = module_names(whole)
    return ""


def _class_names(module_name: str) -> list[str]:
    """The public classes that a module's source shows."""
    module = read_module(module_name)
    names = module.names if module else ()
    return [n for n in names if not n.startswith("_") and find_class(f"{module_name}.{n}")]
