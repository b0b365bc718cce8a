"""Finds wrong keys, class paths and values in a config, and says where and what is near.

The config parser's own message for a typo is a page of nested types, and comes when torch has been
imported. This check runs before it, over each source by itself, and names file, line and the
nearest known key. Classes are read from their source; what that does not tell is left to the
parser.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from itertools import groupby

import yaml

from gmf_platform.cli.arguments import Arguments
from gmf_platform.cli.class_lookup import nearest, resolve_class
from gmf_platform.cli.class_source import find_class
from gmf_platform.cli.signatures import Parameter, Signature, read_signature, signature_of
from gmf_platform.cli.sources import Entry, Sources
from gmf_platform.errors import UserError
from gmf_platform.ranges import Range

__all__ = [
    "CALLBACKS",
    "GENERAL",
    "LINKED",
    "TOP_LEVEL",
    "Classes",
    "check_keys",
    "checked",
    "classes_of",
]

CALLBACKS = {
    "watchdog": "gmf_platform.callbacks.Watchdog",
    "guard": "gmf_platform.callbacks.Guard",
    "checkpoint": "gmf_platform.callbacks.RunCheckpoint",
    "throughput": "gmf_platform.callbacks.Throughput",
    "magnitudes": "gmf_platform.callbacks.Magnitudes",
    "charts": "gmf_platform.callbacks.Charts",
    "pictures": "gmf_platform.callbacks.Pictures",
    "worst": "gmf_platform.callbacks.Worst",
    "average": "gmf_platform.callbacks.MovingAverage",
}
"""Default callbacks by the key that sets them, so that no overlay drops one by accident."""

TOP_LEVEL = ("seed_everything", "trainer", "model", "data", "init_from", *CALLBACKS)

GENERAL = {
    "seed_everything": Parameter(
        "seed_everything",
        ("int",),
        "0",
        words="of order, augmentation and initial weights.",
        range=Range(0, 2**32 - 1),
    ),
    "init_from": Parameter(
        "init_from",
        ("str", "dict", "null"),
        "null",
        words="file of weights to begin with, or one for each part of the model; none: none.",
    ),
}
"""Keys of the top level that configure no class."""

LINKED = {
    "model.seed": "seed_everything",
    "data.seed": "seed_everything",
    "model.class_names": "the data's classes",
}
"""Keys that follow from others."""

_TRAINER_RANGES = {
    "check_val_every_n_epoch": Range(1),
    "gradient_clip_val": Range(0),
    "log_every_n_steps": Range(1),
    "max_epochs": Range(-1),
    "max_steps": Range(-1),
    "num_sanity_val_steps": Range(-1),
}
"""What Lightning's Trainer takes, which its types do not say."""

Classes = dict[str, Signature | None]
"""The class that each key configures; None: one that the source does not tell."""


def checked(arguments: Arguments, needed: Sequence[str] = ("model", "data")) -> Sources:
    """The sources of a command line, checked.

    Args:
        arguments: the parsed command line.
        needed: what the config must name a class for.

    Raises:
        UserError: see `check_keys`.
    """
    sources = Sources(arguments)
    check_keys(sources, needed=needed)
    return sources


def check_keys(
    sources: Sources,
    top_level: Sequence[str] = TOP_LEVEL,
    callbacks: Mapping[str, str] = CALLBACKS,
    needed: Sequence[str] = ("model", "data"),
) -> None:
    """Check each key and value against the class that it configures.

    Args:
        sources: the config.
        top_level: known keys of the top level.
        callbacks: top-level key -> path of the callback's class.
        needed: keys that must name a class.

    Raises:
        UserError: for the first unknown key, class path or wrong value, or a task or data set not
            named.
    """
    classes = _default_classes(callbacks)
    for _, entries in groupby(sources.entries, key=_source):
        _check_source(list(entries), classes, top_level)
    for part in needed:
        if part not in classes:
            raise UserError(
                f"the config names no {part}.class_path: an overlay goes behind a task's config, "
                "as in --config seg_ade20k --config OVERLAY"
            )


def classes_of(sources: Sources) -> Classes:
    """The class that each key configures in the end."""
    classes = _default_classes(CALLBACKS)
    _note_classes(sources.entries, classes)
    return classes


def _default_classes(callbacks: Mapping[str, str]) -> Classes:
    classes = {key: read_signature(path) for key, path in callbacks.items()}
    trainer = read_signature("lightning.pytorch.Trainer")
    if trainer is not None:
        known = trainer.parameters.items()
        ranged = {n: replace(p, range=_TRAINER_RANGES.get(n, p.range)) for n, p in known}
        trainer = replace(trainer, parameters=ranged)
    return {"trainer": trainer, **classes}


def _source(entry: Entry) -> str:
    return entry.place.rpartition(":")[0]


def _check_source(entries: Sequence[Entry], classes: Classes, top_level: Sequence[str]) -> None:
    """Check a source's keys against the classes up to here: later ones may change a class."""
    _note_classes(entries, classes)
    for entry in entries:
        first, *others = entry.key.split(".")
        if first not in top_level:
            raise _unknown(entry, first, top_level, "the config", elsewhere=_inner(first, classes))
        if entry.key in LINKED:
            raise UserError(
                f"{entry.place}: {entry.key} follows from {LINKED[entry.key]}; set that"
            )
        _check_path(entry, first, others, classes)


def _note_classes(entries: Iterable[Entry], classes: Classes) -> None:
    """Note which class each key gets: by its class_path, or a path in place of the object."""
    for entry in entries:
        owner, _, name = entry.key.rpartition(".")
        if name == "class_path":
            classes[owner] = resolve_class(entry)
        elif isinstance(entry.value, str) and _takes_path(entry, classes):
            # A bare name is one of the parser's subclasses.
            classes[entry.key] = resolve_class(entry) if "." in entry.value else None


def _takes_path(entry: Entry, classes: Classes) -> bool:
    """Whether a text at this place is a class path."""
    if not re.fullmatch(r"[A-Za-z_][\w.]*", entry.value):
        return False
    owner, _, name = entry.key.rpartition(".")
    if not owner:
        return name in ("model", "data")
    signature = classes.get(owner)
    parameter = signature.parameters.get(name) if signature else None
    return parameter is not None and parameter.takes_class and not parameter.takes_text


def _check_path(entry: Entry, key: str, names: Sequence[str], classes: Classes) -> None:
    """Follow a key from class to class as far as they are known."""
    parameter: Parameter | None = None
    for place, name in enumerate(names):
        if parameter is not None and parameter.settings is not None:
            classes.setdefault(key, signature_of(parameter.settings))
        signature = classes.get(key)
        if signature is None and f"{key}.{name}" in classes:  # one of a list or mapping of objects
            key, parameter = f"{key}.{name}", None
            continue
        if signature is None:
            _check_keyless(entry, key, parameter, classes)
            return
        if name in ("class_path", "dict_kwargs"):
            return
        if key.rpartition(".")[0] == "model.tasks" and _has(classes.get("model"), name):
            raise UserError(f"{entry.place}: {key}.{name}: is one for all tasks: set model.{name}")
        filled = parameter.passed if parameter else 0  # by the code, the first ones
        settable = dict([*signature.parameters.items()][filled:])
        parameter = settable.get(name)
        if parameter is None:
            raise _unknown(entry, name, settable, signature.name, place)
        key = f"{key}.{name}"
    _check_value(entry, parameter, classes)


def _has(signature: Signature | None, name: str) -> bool:
    return signature is not None and name in signature.parameters


def _inner(name: str, classes: Classes) -> list[str]:
    """Keys inside the config that end with a name that somebody thought to be one of its own."""
    known = ((key, s) for key, s in classes.items() if s is not None)
    inner = [f"{key}.{parameter}" for key, signature in known for parameter in signature.parameters]
    return [key for key in inner if key.endswith((f".{name}", f"_{name}"))]


def _check_keyless(entry: Entry, key: str, parameter: Parameter | None, classes: Classes) -> None:
    """Refuse keys below what has none, and to take away a task that is not there."""
    if key in ("model.tasks", "data.tasks") and entry.value is None and not entry.mapping:
        tasks = [one.rpartition(".")[2] for one in classes if one.rpartition(".")[0] == key]
        name = entry.key.removeprefix(f"{key}.")
        raise UserError(
            f"{entry.place}: {entry.key}: there is no task {name}{nearest(name, tasks)}"
        )
    if key in classes or (parameter is not None and (parameter.takes_keys or parameter.takes_list)):
        if parameter is not None and not _in_range(entry.value, parameter):
            raise _unexpected(entry, f"a number, {parameter.range}")
        return  # the parser knows, or says
    if parameter is not None:
        raise UserError(
            f"{entry.place}: unknown key {entry.key}: {key} is {parameter.expected}, without keys"
        )
    if key in ("model", "data", "init_from"):
        return  # of model and data it is said once all sources are read
    raise UserError(f"{entry.place}: unknown key {entry.key}: {key} is one value, without keys")


def _check_value(entry: Entry, parameter: Parameter | None, classes: Classes) -> None:
    """Refuse a value that is clearly of another type; what is doubtful is left to the parser."""
    value, parameter = entry.value, parameter or GENERAL.get(entry.key)
    if parameter is None:
        is_path = entry.key in ("model", "data") and isinstance(entry.value, str)
        if "." not in entry.key and entry.key in classes and not (entry.mapping or is_path):
            raise _unexpected(entry, f"keys of {entry.key}{_example(entry.key, classes)}")
        return
    if isinstance(value, str) and "${" in value:
        return
    takes_both = {"str", "class"} <= {*parameter.types}
    if takes_both and isinstance(value, str) and find_class(value):
        raise UserError(f"{entry.place}: {entry.key}: a class is set by {entry.key}.class_path")
    if entry.mapping or isinstance(value, dict):
        fits = parameter.takes_keys or parameter.takes_list
    elif value is None:
        fits = parameter.takes_null
    elif isinstance(value, list):
        fits = parameter.takes_list or (parameter.takes_class and not parameter.is_object)
    else:  # what YAML reads as false may be the text off
        texts = [yaml.safe_load(choice) for choice in parameter.choices]
        fits = parameter.takes(value) or any(text is value for text in texts)
    if not (fits and _in_range(value, parameter)):
        raise _unexpected(entry, parameter.expected, parameter.choices)


def _in_range(value: object, parameter: Parameter) -> bool:
    bounds = parameter.range
    return bounds is None or all(number in bounds for number in _numbers(value))


def _numbers(value: object) -> Iterator[float]:
    match value:
        case list():
            for part in value:
                yield from _numbers(part)
        case dict():
            yield from _numbers([*value.values()])
        case bool():
            return
        case int() | float():
            yield value
        case str():
            with suppress(ValueError):  # any other text
                yield float(value)


def _example(key: str, classes: Classes) -> str:
    signature = classes[key]
    names = signature.parameters if signature else ()
    first = next((name for name in names if f"{key}.{name}" not in LINKED), None)
    return f", e.g. {first}: VALUE" if first else ""


def _unexpected(entry: Entry, expected: str, choices: Sequence[str] = ()) -> UserError:
    given = "keys" if entry.mapping else "null" if entry.value is None else repr(entry.value)
    near = get_close_matches(str(entry.value), choices, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UserError(f"{entry.place}: {entry.key}: expected {expected}, not {given[:80]}{hint}")


def _unknown(
    entry: Entry,
    name: str,
    known: Iterable[str],
    where: str,
    place: int | None = None,
    elsewhere: Sequence[str] = (),
) -> UserError:
    key = entry.key
    if place is not None:
        key = ".".join(entry.key.split(".")[: place + 2])
    hint = f"; did you mean {' or '.join(elsewhere)}?" if elsewhere else nearest(name, list(known))
    return UserError(f"{entry.place}: unknown key {key}: {where} has no {name!r}{hint}")
