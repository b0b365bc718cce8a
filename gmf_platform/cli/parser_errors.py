"""What the config parser's page of nested types comes to, in a line or two."""

import re

from omegaconf.errors import OmegaConfBaseException

from gmf_platform.cli.config_check import classes_of
from gmf_platform.cli.sources import Sources, canonical

__all__ = ["interpolation_error", "shortened"]

_KIND = re.compile(
    r"Import path (\S+) does not correspond to a subclass of (\w+)"
    r"|Expected '(\S+)' to be a subclass of <class '(\w+)'>"
)

_NEEDED = (
    r"arguments are required: (?P<keys>.*) \((?P<cls>\S+)\)\s",
    r"given class_path '(?P<cls>\S+)':\s+[^\n]*arguments are required: (?P<keys>.*)",
)


def shortened(message: str, sources: Sources) -> str:
    """Key, place, what is expected and what is given."""
    message = re.sub(r"\.? Got value: Namespace\(class_path='(\S+?)'.*", r" (\1)", message)
    keys = re.findall(r'(?:Parser key|key) "([\w.]+)"', message)
    said = _said(message, key := canonical(".".join(keys)), sources)
    return f"{_place(key, sources)}: {key}: {said}" if keys else said


def _said(message: str, key: str, sources: Sources) -> str:
    if kind := _KIND.search(message):
        given, wanted = (part for part in kind.groups() if part is not None)
        return f"expected a class derived from {wanted}, not {given}"
    for pattern in _NEEDED:
        if needed := re.search(pattern, message):
            return f"{needed['cls']} needs {needed['keys']}, which the config does not give"
    expected = re.findall(
        r"Expected an? (?:<class '[\w.]*?(\w+)'>|typing\.(Literal\[.*?\]))", message
    )
    wanted = [a or b for a, b in expected if a != "NoneType"]
    given = re.findall(r"(?:Got value|Given value): (\[.*\]|[^\s({]+?)\.?(?:\s|$)", message)
    if key and wanted and given:
        return f"expected {' or '.join(dict.fromkeys(wanted))}, not {given[0]!r}"
    if refused := re.search(r"Option '([\w.]+)' is not accepted", message):
        hint = "" if classes_of(sources).get(key) else f": {key}.class_path names no class"
        return f"{refused[1]!r} is no key here{hint}"
    innermost = re.split(r'Parser key "[\w.]+":', message)[-1].strip(" -\n").splitlines()
    if not re.match("Does not validate|Expected a path", innermost[0]):
        lines = innermost[: 2 if innermost[0].endswith(":") else 1]
        return " ".join(line.strip(" -") for line in lines)
    return _by_signature(key, sources)


def _by_signature(key: str, sources: Sources) -> str:
    """What the class that takes a key says of it."""
    owner, _, name = key.rpartition(".")
    signature = classes_of(sources).get(owner)
    parameter = signature.parameters.get(name) if signature else None
    expected = parameter.expected if parameter else "a class (class_path: MODULE.CLASS)"
    given = [e.value for e in sources.entries if e.key == key and not e.mapping]
    return f"expected {expected}" + (f", not {given[-1]!r}" if given else ", not these keys")


def _place(key: str, sources: Sources) -> str:
    """Where a key was last set, or something below it."""
    below = (e.place for e in reversed(sources.entries) if e.key.startswith(f"{key}."))
    return sources.place(key) or next(below, "config")


def interpolation_error(error: OmegaConfBaseException, sources: Sources) -> str:
    """What is wrong with a ``${...}``, and where it stands."""
    key = canonical(error.full_key or "")
    return (
        f"{sources.place(key) or 'config'}: {key}: {str(error).splitlines()[0]}\n"
        "  a key inside a class is named with init_args: ${data.init_args.crop_size}; an "
        "environment variable with its default: ${oc.env:NAME,default}"
    )
