"""What the keys of a config mean: types, values and the docstrings' words, in groups."""

import shutil
from argparse import ArgumentParser
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from textwrap import wrap
from types import MappingProxyType

from gmf_platform.cli.arguments import Arguments, config_of, find_config
from gmf_platform.cli.config_check import CALLBACKS, GENERAL, LINKED, TOP_LEVEL, Classes, classes_of
from gmf_platform.cli.signatures import Parameter, Signature, signature_of
from gmf_platform.cli.sources import Sources, as_yaml, canonical

__all__ = ["key_help"]

_OURS = {
    "trainer.accumulate_grad_batches",
    "trainer.default_root_dir",
    "trainer.enable_checkpointing",
    "trainer.enable_model_summary",
    "trainer.enable_progress_bar",
    "trainer.fast_dev_run",
    "trainer.use_distributed_sampler",
    *LINKED,
}
"""Keys that we set ourselves."""


def key_help(words: Sequence[str]) -> list[str]:
    """The keys of the config that a command line names.

    Args:
        words: the command line behind the verb, ``--help`` left out.

    Returns:
        Lines to print; none if no config is named.

    Raises:
        UserError: the config is not there, or is no config.
    """
    sources = _sources(words)
    if sources is None:
        return []
    classes = {k: s for k, s in classes_of(sources).items() if not sources.is_removed(k)}
    lines = ["Keys of the config, with what it sets them to (--KEY VALUE sets another):"]
    general = Signature("", "", GENERAL, ())
    lines += _lines("", general, list(GENERAL.values()), sources)
    for key in ("model", "data", "trainer", *CALLBACKS):
        for group, signature, parameters in _groups(key, classes, signature=classes.get(key)):
            lines += _lines(group, signature, parameters, sources)
    return lines


def _sources(words: Sequence[str]) -> Sources | None:
    """The config that a command line names, with its overrides; what else it says is passed by."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--run", type=Path)
    options, rest = parser.parse_known_args(words)
    files = [find_config(name) for name in options.config]
    if options.run is not None:
        files.insert(0, config_of(options.run))
    overrides = []
    for word, behind in zip_longest(rest, rest[1:], fillvalue=""):
        key, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and canonical(key).split(".")[0] in TOP_LEVEL:
            overrides.append((key, value if equals else behind))
    return Sources(Arguments(options, files, overrides)) if files else None


_Group = tuple[str, Signature, list[Parameter]]


def _groups(
    key: str,
    classes: Classes,
    *,
    signature: Signature | None,
    passed: int = 0,
    given: Mapping[str, str] = MappingProxyType({}),
    without: Collection[str] = (),
) -> Iterator[_Group]:
    """A class's own parameters, then those of the classes that it is given.

    Args:
        key: that configures the class.
        classes: of all keys.
        signature: of the class.
        passed: parameters that the code fills, the first ones.
        given: defaults that stand in for the class's own.
        without: names of parameters that are given elsewhere.
    """
    if signature is None:
        return
    shown = list(signature.parameters.values())[passed:]
    shown = [
        replace(parameter, default=given.get(parameter.name, parameter.default))
        for parameter in shown
        if f"{key}.{parameter.name}" not in _OURS and parameter.name not in without
    ]
    yield key, signature, shown
    for parameter in shown:
        inner = f"{key}.{parameter.name}"
        settings = parameter.settings
        of_inner = classes.get(inner) or (None if settings is None else signature_of(settings))
        start = f"{parameter.name}."
        deeper = {k.removeprefix(start): v for k, v in given.items() if k.startswith(start)}
        yield from _groups(
            inner,
            classes,
            signature=of_inner,
            passed=parameter.passed,
            given=dict(parameter.given) | deeper,
        )
        # Objects in a list or mapping; what joint training gives its tasks is not theirs to set.
        theirs = signature.parameters if key == "model" else ("seed",)
        for one in [k for k in classes if k.rpartition(".")[0] == inner and inner not in classes]:
            yield from _groups(one, classes, signature=classes[one], without=theirs)


def _lines(
    key: str, signature: Signature, parameters: Sequence[Parameter], sources: Sources
) -> Iterator[str]:
    if not parameters:
        return
    width = min(100, shutil.get_terminal_size().columns)
    if key:
        yield from ["", *wrap(f"{key}: {signature.name}. {signature.summary}".rstrip(" ."), width)]
    for parameter in parameters:
        name = f"{key}.{parameter.name}".lstrip(".")
        yield f"  --{name} {_types(parameter)}{_value(name, parameter, sources)}"
        yield from wrap(
            parameter.words, width, initial_indent=" " * 8, subsequent_indent=" " * 8, max_lines=4
        )


def _types(parameter: Parameter) -> str:
    if parameter.settings is not None:
        return "keys"
    kinds = "|".join(kind.replace(" ", "") for kind in parameter.types)
    return kinds if parameter.range is None else f"{kinds} ({parameter.range})"


def _value(name: str, parameter: Parameter, sources: Sources) -> str:
    """What the config sets a key to, and its default if that is another."""
    default = "" if parameter.settings else parameter.default
    class_path = sources.value(f"{name}.class_path")
    place = sources.place(name)
    if class_path is not None:
        return f" = {class_path}"
    if not place or sources.is_mapping(name):
        return f" = {default}" if default else "" if default == "" else " (must be given)"
    value = as_yaml(sources.value(name))
    return f" = {value}" + (f" (default {default})" if default not in (None, value) else "")
