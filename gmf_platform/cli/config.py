"""config show: the resolved config, and what set each key."""

from collections.abc import Iterator, Sequence

import yaml

from gmf_platform.cli.arguments import PlainParser, VerbParser, parse_arguments
from gmf_platform.cli.config_check import checked
from gmf_platform.cli.sources import Sources, canonical
from gmf_platform.errors import ExitCode

__all__ = ["run", "with_origins"]

_COLUMN = 60
"""Where the comments begin, if the lines leave room."""


def run(verb: str, argv: Sequence[str]) -> int:
    """Run the verb; see ``config --help`` and ``config show --help``."""
    parser = PlainParser(verb, "What a config comes to.")
    parser.add_argument("what", choices=["show"], help="show: print the resolved config")
    parser.parse_args(argv[:1])
    return _show(f"{verb} show", argv[1:])


def _show(verb: str, argv: Sequence[str]) -> int:
    parser = VerbParser(
        verb, "Print the resolved config: files and overrides merged, defaults filled in."
    )
    parser.add_run()
    parser.add_argument(
        "--origin", action="store_true", help="say of each key which file and line set it"
    )
    arguments = parse_arguments(parser, argv)
    sources = checked(arguments)

    from gmf_platform.cli.experiment import Experiment

    text = Experiment(arguments).yaml
    print(with_origins(text, sources) if arguments.options.origin else text, end="")
    return ExitCode.DONE


def with_origins(text: str, sources: Sources) -> str:
    """A resolved config with a comment behind each key's value: which file and line set it.

    Args:
        text: YAML in block style.
        sources: what it was resolved from.
    """
    lines = text.splitlines()
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    for key, line in _leaves(root, ()):
        lines[line] = f"{lines[line]:<{_COLUMN}}  # {_origin(key, sources)}"
    return "".join(f"{line}\n" for line in lines)


def _leaves(node: yaml.MappingNode, above: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Canonical keys of values that are no mappings, each with its line."""
    for key_node, value in node.value:
        keys = (*above, str(key_node.value))
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _leaves(value, keys)
        else:
            is_one = isinstance(value, yaml.ScalarNode) and value.style not in ("|", ">")
            mark = value.end_mark if is_one else key_node.start_mark  # long texts are wrapped
            yield canonical(".".join(keys)), mark.line


def _origin(key: str, sources: Sources) -> str:
    """``FILE:LINE``, with the text of an interpolation; ``command line``; or ``default``."""
    names = (key, key.removesuffix(".class_path"))  # a class may be set by its path alone
    entry = next((e for e in reversed(sources.entries) if e.key in names and not e.mapping), None)
    if entry is None:
        return "default"
    is_filled = isinstance(entry.value, str) and "${" in entry.value
    return f"{entry.place}: {entry.value}" if is_filled else entry.place
