"""What a class takes: its parameters with types, defaults and the docstring's words.

Read from the source, so that help and the check of keys need not wait for torch.
"""

import ast
import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache

from gmf_platform.cli.class_source import ClassSource, Module, find_class, last_name
from gmf_platform.cli.type_ranges import range_of
from gmf_platform.ranges import Range

__all__ = ["Parameter", "Signature", "read_signature"]

_OPTIONAL = {"Optional"}
_UNIONS = {"Union"}
_MAPPINGS = {"dict", "Dict", "Mapping", "Any", "object", "Namespace", "TypedDict"}
_LISTS = {"list", "List", "Sequence", "Iterable", "tuple", "Tuple", "set", "Any", "object"}
_PLAIN = {"int", "float", "bool", "null"}
_SCALARS = {"int", "float", "str", "bool", "bytes", "Path", "PathLike", "timedelta"}


@dataclass(frozen=True)
class Parameter:
    """A parameter of a class.

    Attributes:
        name: of the parameter.
        types: what it takes, as words for people: ``int``, ``null``, ``list[float]``, ``class``.
        choices: the only texts that it takes, if its type names them.
        default: as a config would write it; None: it must be given.
        words: of the docstring.
        settings: the dataclass that its keys belong to, if its type is one.
        passed: of a factory, how many arguments it is called with; a config gives the others.
        given: by ``settings`` key, defaults that its own default gives.
        range: that its numbers have to be in; None: any.
    """

    name: str
    types: tuple[str, ...]
    default: str | None = None
    choices: tuple[str, ...] = ()
    words: str = ""
    settings: ClassSource | None = None
    passed: int = 0
    given: tuple[tuple[str, str], ...] = ()
    range: Range | None = None

    @property
    def expected(self) -> str:
        """What it takes, for the middle of a sentence."""
        words = ["a class (class_path: MODULE.CLASS)" if t == "class" else t for t in self.types]
        kinds = " or ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)
        return kinds if self.range is None else f"{kinds} ({self.range})"

    @property
    def takes_null(self) -> bool:
        """Whether it may be null."""
        return self.default == "null" or bool({"null", "any"} & {*self.types})

    @property
    def takes_class(self) -> bool:
        """Whether it may be an object, which a config names by its class."""
        return bool({"class", "any"} & {*self.types})

    @property
    def is_object(self) -> bool:
        """Whether it can be nothing else."""
        return {*self.types} <= {"class", "null"} and self.settings is None

    @property
    def takes_text(self) -> bool:
        """Whether it may be any text."""
        return bool({"str", "Path", "any"} & {*self.types})

    def takes(self, value: object) -> bool:
        """Whether it may be a single value; what is doubtful passes."""
        types = {*self.types}
        if self.is_object and not isinstance(value, str):
            return False
        if str(value) in self.choices or not types <= _PLAIN | {*self.choices}:
            return True
        match value:
            case bool():
                return "bool" in types
            case int():
                return bool({"int", "float", "bool"} & types)
            case float():
                return "float" in types or ("int" in types and value.is_integer())
            case _:
                return bool({"int", "float"} & types) and _is_number(str(value))

    @property
    def takes_list(self) -> bool:
        """Whether it may be a list."""
        return "any" in self.types or any(_head(kind) in _LISTS for kind in self.types)

    @property
    def takes_keys(self) -> bool:
        """Whether it may be a mapping."""
        has_keys = any(_head(kind) in _MAPPINGS for kind in self.types)
        return has_keys or self.takes_class or self.settings is not None


@dataclass(frozen=True)
class Signature:
    """What a class takes.

    Attributes:
        path: ``MODULE.CLASS``, where it is defined.
        summary: first sentence of its docstring.
        parameters: by name, in order; those of bases behind, where the class passes them on.
        bases: paths of the class and of its bases, as far as they are found.
    """

    path: str
    summary: str
    parameters: dict[str, Parameter]
    bases: tuple[str, ...]

    @property
    def name(self) -> str:
        """The class's own name."""
        return self.path.rpartition(".")[2]


def read_signature(path: str) -> Signature | None:
    """The signature of a class by its path; None where its source does not tell."""
    source = find_class(path)
    return None if source is None else signature_of(source)


@cache
def signature_of(source: ClassSource) -> Signature:
    """The signature of a class whose source is found."""
    lineage = source.lineage()
    found = _fields(lineage) if _is_record(source) else _of_constructors(lineage)
    parameters: dict[str, Parameter] = {}
    for parameter in found:
        parameters.setdefault(parameter.name, parameter)
    summary = " ".join(source.docstring.split("\n\n")[0].split())
    return Signature(source.path, summary, parameters, tuple(one.path for one in lineage))


def _of_constructors(lineage: list[ClassSource]) -> Iterator[Parameter]:
    """Parameters of the constructor, and of the bases' as far as ``**kwargs`` pass them on."""
    for source in lineage:
        constructor = source.method("__init__")
        if constructor is None:
            continue
        words = _words(source.docstring) | _words(ast.get_docstring(constructor) or "")
        arguments = constructor.args
        positional = [*arguments.posonlyargs, *arguments.args]
        defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
        defaults += [*arguments.defaults, *arguments.kw_defaults]
        for argument, default in zip([*positional, *arguments.kwonlyargs], defaults, strict=True):
            if argument.arg != "self":
                one = _parameter(source.module, argument.arg, argument.annotation, default)
                yield replace(one, words=words.get(argument.arg, ""))
        if arguments.kwarg is None:
            return


def _is_record(source: ClassSource) -> bool:
    """Whether the class's fields are its parameters: a dataclass or a NamedTuple."""
    decorators = (d.func if isinstance(d, ast.Call) else d for d in source.node.decorator_list)
    named = [*map(last_name, decorators), *map(last_name, source.node.bases)]
    return source.method("__init__") is None and bool({"dataclass", "NamedTuple"} & {*named})


def _fields(lineage: list[ClassSource]) -> Iterator[Parameter]:
    for source in lineage:
        words = _words(source.docstring)
        for item in source.node.body:
            match item:
                case ast.AnnAssign(target=ast.Name(name), annotation=annotation, value=default):
                    if last_name(annotation) != "ClassVar":
                        one = _parameter(source.module, name, annotation, default)
                        yield replace(one, words=words.get(name, ""))


def _parameter(
    module: Module, name: str, annotation: ast.expr | None, default: ast.expr | None
) -> Parameter:
    written = tuple(dict.fromkeys(_types(module, annotation)))
    choices = tuple(ast.literal_eval(kind) for kind in written if kind[0] in "'\"")
    types = tuple(kind.strip("'\"") for kind in written)
    settings = _settings(module, annotation) if annotation is not None else None
    text = None if default is None else _as_yaml(default)
    given = _given(module, default, settings) if settings and default is not None else ()
    return Parameter(
        name,
        types,
        text,
        choices,
        settings=settings,
        passed=_passed(module, annotation),
        given=given,
        range=range_of(module, annotation),
    )


def _types(module: Module, node: ast.expr | None, depth: int = 5) -> Iterator[str]:
    """The alternatives of a type, as words for people."""
    match node:
        case None:
            yield "any"
        case ast.Constant(None):
            yield "null"
        case ast.Constant(str() as text):
            yield from _types(module, ast.parse(text, mode="eval").body, depth)
        case ast.BinOp(left, ast.BitOr(), right):
            yield from _types(module, left, depth)
            yield from _types(module, right, depth)
        case ast.Subscript(kind, inner) if last_name(kind) in _UNIONS | _OPTIONAL:
            for part in inner.elts if isinstance(inner, ast.Tuple) else [inner]:
                yield from _types(module, part, depth)
            yield from ["null"] if last_name(kind) in _OPTIONAL else []
        case ast.Subscript(kind, inner) if last_name(kind) == "Literal":
            for choice in inner.elts if isinstance(inner, ast.Tuple) else [inner]:
                yield repr(_as_yaml(choice))
        case ast.Subscript(kind, inner) if last_name(kind) in ("Final", "Annotated", "Required"):
            yield from _types(module, inner.elts[0] if isinstance(inner, ast.Tuple) else inner)
        case ast.Name() | ast.Attribute() | ast.Subscript():
            yield from _named(module, node, depth)
        case _:
            yield "any"


def _named(module: Module, node: ast.expr, depth: int) -> Iterator[str]:
    name = last_name(node)
    if name in _SCALARS:
        yield name
    elif name in _MAPPINGS | _LISTS:
        plain = _Plain(module).visit(deepcopy(node))
        yield "any" if name in ("Any", "object") else ast.unparse(plain)
    else:
        alias = module.look_up(node) if depth else None
        if alias is not None and not isinstance(alias[1], ast.ClassDef):
            yield from _types(alias[0], alias[1], depth - 1)
        else:
            yield "class"


class _Plain(ast.NodeTransformer):
    """Puts ``int`` where a type says ``PositiveInt``."""

    def __init__(self, module: Module) -> None:
        self.module = module

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._behind(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        return self._behind(node)

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        match node:
            case ast.Subscript(kind, ast.Tuple([plain, *_])) if last_name(kind) == "Annotated":
                return plain
        return self.generic_visit(node)

    def _behind(self, node: ast.Name | ast.Attribute) -> ast.expr:
        match self.module.look_up(node):
            case _, ast.Subscript(kind, ast.Tuple([plain, *_])) if last_name(kind) == "Annotated":
                return plain
        return node


def _passed(module: Module, node: ast.expr | None) -> int:
    """How many arguments a ``Callable`` among the alternatives of a type takes."""
    match node:
        case ast.BinOp(left, ast.BitOr(), right):
            return _passed(module, left) or _passed(module, right)
        case ast.Subscript(kind, ast.Tuple([ast.List(arguments), _])) if (
            last_name(kind) == "Callable"
        ):
            return len(arguments)
        case ast.Subscript(kind, inner) if last_name(kind) in _OPTIONAL:
            return _passed(module, inner)
        case ast.Name(name):
            alias = module.find(name)
            known = alias is not None and not isinstance(alias[1], ast.ClassDef | ast.Name)
            return _passed(*alias) if alias is not None and known else 0  # type: ignore[arg-type]
        case _:
            return 0


def _settings(module: Module, node: ast.expr) -> ClassSource | None:
    """The dataclass among the alternatives of a type."""
    match node:
        case ast.BinOp(left, ast.BitOr(), right):
            return _settings(module, left) or _settings(module, right)
        case ast.Name() | ast.Attribute():
            found = module.class_of(node)
            return found if found is not None and _is_record(found) else None
        case _:
            return None


def _given(module: Module, default: ast.expr, settings: ClassSource) -> tuple[tuple[str, str], ...]:
    """What a default such as ``Matcher(0.7, 0.3)`` says of its fields, also by a constant's name."""
    if isinstance(default, ast.Name):
        found = module.find(default.id)
        if found is None or isinstance(found[1], ast.ClassDef):
            return ()
        return _given(found[0], found[1], settings)
    if not isinstance(default, ast.Call):
        return ()
    names = signature_of(settings).parameters
    pairs = [*zip(names, default.args, strict=False)]
    pairs += [(k.arg, k.value) for k in default.keywords if k.arg is not None]
    given: list[tuple[str, str]] = []
    for name, value in pairs:
        inner = names[name].settings if name in names else None
        deeper = _given(module, value, inner) if inner is not None else ()
        given += [(f"{name}.{key}", text) for key, text in deeper]
        given.append((name, _as_yaml(value)))
    return tuple(given)


def _words(docstring: str) -> dict[str, str]:
    """The texts of the ``Args:`` (of a dataclass, ``Attributes:``) section, by parameter."""
    words: dict[str, list[str]] = {}
    entry, margin, depth = "", -1, 0
    for line in filter(str.strip, docstring.splitlines()):
        indent = len(line) - len(line.lstrip())
        found = re.match(r"\s*\**(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)", line)
        if re.fullmatch(r"\s*(Args|Arguments|Attributes|Parameters):\s*", line):
            entry, margin = "", indent
        elif indent <= margin or margin < 0:
            margin = -1
        elif found is not None and (not entry or indent <= depth):
            entry, depth = found[1], indent
            words.setdefault(entry, []).append(found[2])
        elif entry:
            words[entry].append(line.strip())
    return {name: " ".join(lines).replace("``", "") for name, lines in words.items()}


def _as_yaml(node: ast.expr) -> str:
    """A default as a config would write it."""
    match node:
        case ast.Constant(None):
            return "null"
        case ast.Constant(bool() as flag):
            return str(flag).lower()
        case ast.Constant(str() as text):
            return text or '""'
        case ast.Tuple(items) | ast.List(items):
            return f"[{', '.join(map(_as_yaml, items))}]"
        case _:
            return ast.unparse(node)


def _is_number(text: str) -> bool:
    """Whether a text is a number, as 1e-3, which YAML 1.1 does not take for one."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _head(kind: str) -> str:
    return kind.partition("[")[0].rpartition(".")[2]
