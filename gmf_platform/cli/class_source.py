"""Finds classes in source files, without importing them: torch alone takes longer than an answer.

A name is followed through ``from M import N``, also where a package imports it on demand and says
so under ``TYPE_CHECKING``. What is made while a module runs is not found; who needs that imports.
"""

import ast
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path

__all__ = [
    "ClassSource",
    "Module",
    "find_class",
    "find_spec",
    "last_name",
    "module_names",
    "read_module",
]

_DEPTH = 20
"""Imports that a name is followed through at most: two modules may import it from each other."""


@dataclass(frozen=True, eq=False)
class Module:
    """A module's source.

    Attributes:
        name: dotted.
        package: what its relative imports begin from.
        names: what stands at its top: a class, the value of a constant, or module and name that
            it is imported from.
        stars: modules that all names are imported from.
        docstrings: those given by ``CLASS.__doc__ = ...``.
    """

    name: str
    package: str
    names: dict[str, ast.ClassDef | ast.expr | tuple[str, str]] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)
    docstrings: dict[str, str] = field(default_factory=dict)

    def find(
        self, name: str, depth: int = _DEPTH
    ) -> "tuple[Module, ast.ClassDef | ast.expr] | None":
        """A class or the value of a constant, and the module that it stands in."""
        found = self.names.get(name)
        if isinstance(found, ast.AST):
            return self, found
        sources = [found] if found is not None else [(star, name) for star in self.stars]
        for source, inner in sources if depth else ():
            module = read_module(source)
            there = module.find(inner, depth - 1) if module else None
            if there is not None:
                return there
        return None

    def look_up(self, node: ast.expr) -> "tuple[Module, ast.ClassDef | ast.expr] | None":
        """What an expression of this module names, e.g. ``nn.Module``; see `find`."""
        match node:
            case ast.Name(name):
                return self.find(name)
            case ast.Attribute(above, name):
                dotted = ast.unparse(above)
                source = self.names.get(dotted)
                inside = read_module(".".join(source)) if isinstance(source, tuple) else None
                inside = inside or read_module(dotted)
                return inside.find(name) if inside else None
            case _:
                return None

    def class_of(self, node: ast.expr) -> "ClassSource | None":
        """The class that an expression of this module names, also with parameters."""
        found = self.look_up(node.value if isinstance(node, ast.Subscript) else node)
        if found is not None and isinstance(found[1], ast.ClassDef):
            return ClassSource(found[0], found[1])
        return None


@dataclass(frozen=True)
class ClassSource:
    """A class's source and the module that it stands in."""

    module: Module
    node: ast.ClassDef

    @property
    def path(self) -> str:
        """``MODULE.CLASS``, of the module that defines it."""
        return f"{self.module.name}.{self.node.name}"

    @property
    def docstring(self) -> str:
        """Its own, indentation removed; empty where it has none."""
        return ast.get_docstring(self.node) or self.module.docstrings.get(self.node.name, "")

    def method(self, name: str) -> ast.FunctionDef | None:
        """A method that the class itself defines."""
        methods = (item for item in self.node.body if isinstance(item, ast.FunctionDef))
        return next((method for method in methods if method.name == name), None)

    def lineage(self) -> "list[ClassSource]":
        """The class and its bases, as far as their source is found, nearest first."""
        bases = (self.module.class_of(base) for base in self.node.bases)
        above = [one for base in bases if base is not None for one in base.lineage()]
        paths = [one.path for one in above]
        return [self, *(one for i, one in enumerate(above) if one.path not in paths[i + 1 :])]


def find_class(path: str) -> ClassSource | None:
    """The class of a path ``MODULE.CLASS``; None where the source does not show it."""
    module_name, _, name = path.rpartition(".")
    module = read_module(module_name)
    found = module.find(name) if module else None
    if found is None or not isinstance(found[1], ast.ClassDef):
        return None
    return ClassSource(found[0], found[1])


def module_names(package: str) -> list[str]:
    """The modules in a package; of all packages where it is empty."""
    if not package:
        return [info.name for info in pkgutil.iter_modules()]
    spec = find_spec(package)
    locations = (spec.submodule_search_locations if spec else None) or []
    return [info.name for info in pkgutil.iter_modules(locations)]


def read_module(name: str) -> Module | None:
    """The source of a module; None where there is none in Python."""
    spec = find_spec(name)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    try:
        stamp = Path(spec.origin).stat().st_mtime_ns
        return _parse(name, spec.origin, stamp, spec.submodule_search_locations is not None)
    except (OSError, SyntaxError):
        return None


@cache
def _parse(name: str, file: str, stamp: int, is_package: bool) -> Module:
    """A module from its file, which has not been changed since the time of the stamp."""
    module = Module(name, name if is_package else name.rpartition(".")[0])
    for statement in _top(ast.parse(Path(file).read_bytes()).body):
        _note(module, statement)
    return module


def find_spec(name: str) -> ModuleSpec | None:
    """Where a module lies; its packages are not imported, which importlib.util would do."""
    loaded = sys.modules.get(name)
    if loaded is not None and loaded.__spec__ is not None:
        return loaded.__spec__
    try:
        return _find_spec(name, tuple(sys.path))
    except ModuleNotFoundError:  # which is not kept: a file may yet come
        return None


@cache
def _find_spec(name: str, path: tuple[str, ...]) -> ModuleSpec:
    package, _, _ = name.rpartition(".")
    above = find_spec(package) if package else None
    if not name or (package and (above is None or above.submodule_search_locations is None)):
        raise ModuleNotFoundError(name)
    places = list(above.submodule_search_locations or ()) if above else None
    specs = (finder.find_spec(name, places) for finder in sys.meta_path)
    found = next((spec for spec in specs if spec is not None), None)
    if found is None:
        raise ModuleNotFoundError(name)
    return found


def last_name(node: ast.expr) -> str:
    """The last name of a dotted one: ``Optional`` of ``typing.Optional[int]``."""
    match node:
        case ast.Subscript(kind, _):
            return last_name(kind)
        case ast.Attribute(_, name) | ast.Name(name):
            return name
        case _:
            return ""


def _top(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module's top, those under its conditions included."""
    for statement in body:
        match statement:
            case ast.If(body=inner, orelse=others):
                yield from _top([*others, *inner])
            case ast.Try(body=inner, handlers=handlers):
                yield from _top([*(s for h in handlers for s in h.body), *inner])
            case _:
                yield statement


def _note(module: Module, statement: ast.stmt) -> None:
    match statement:
        case ast.ClassDef(name=name):
            module.names[name] = statement
        case ast.Assign(targets=[ast.Name(name)], value=value):
            module.names[name] = value
        case ast.AnnAssign(target=ast.Name(name), value=ast.expr() as value):
            module.names[name] = value
        case ast.Assign(targets=[ast.Attribute(ast.Name(name), "__doc__")], value=value):
            module.docstrings[name] = _strings(value)
        case ast.Import(names=aliases):
            for alias in aliases:
                package, _, last = alias.name.rpartition(".")
                if alias.asname and package:
                    module.names[alias.asname] = (package, last)
        case ast.ImportFrom(module=source, names=aliases, level=level):
            above = module.package.split(".")
            base = ".".join(above[: len(above) - level + 1]) if level else ""
            whole = ".".join(filter(None, (base, source)))
            for alias in aliases:
                if alias.name == "*":
                    module.stars.append(whole)
                else:
                    module.names[alias.asname or alias.name] = (whole, alias.name)


def _strings(node: ast.expr) -> str:
    """The text that a docstring is put together from, without what is filled in."""
    parts = [n for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    parts.sort(key=lambda part: (part.lineno, part.col_offset))
    return "".join(str(part.value) for part in parts)
