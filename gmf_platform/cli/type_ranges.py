"""The range of a number as its type's source says it, see gmf_platform.ranges."""

import ast
from collections.abc import Iterator

from gmf_platform.cli.class_source import Module, last_name
from gmf_platform.ranges import Range

__all__ = ["range_of"]

_MAPPINGS = {"dict", "Dict", "Mapping"}


def range_of(module: Module, node: ast.expr | None) -> Range | None:
    """The range that all numbers of a type have, also those in a list; None if they differ."""
    ranges = {*_ranges(module, node)}
    return ranges.pop() if len(ranges) == 1 else None


def _ranges(module: Module, node: ast.expr | None, depth: int = 5) -> Iterator[Range | None]:
    """The range of each number in a type; None for a number of any size."""
    match node:
        case ast.Constant(str() as text):
            yield from _ranges(module, ast.parse(text, mode="eval").body, depth)
        case ast.Name("int" | "float"):
            yield None
        case ast.Name() | ast.Attribute():
            alias = module.look_up(node) if depth else None
            if alias is not None and not isinstance(alias[1], ast.ClassDef):
                yield from _ranges(alias[0], alias[1], depth - 1)
        case ast.BinOp(left, ast.BitOr(), right):
            yield from _ranges(module, left, depth)
            yield from _ranges(module, right, depth)
        case ast.Subscript(kind, inner):
            parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            match last_name(kind):
                case "Annotated":
                    own = [r for part in parts[1:] if (r := _own_range(module, part)) is not None]
                    yield from own or _ranges(module, parts[0], depth)
                case "Literal":
                    are_texts = (isinstance(getattr(part, "value", None), str) for part in parts)
                    yield from () if all(are_texts) else (None,)
                case "Callable" | "type":
                    pass
                case name:
                    for part in parts[-1:] if name in _MAPPINGS else parts:
                        yield from _ranges(module, part, depth)


def _own_range(module: Module, node: ast.expr) -> Range | None:
    """The range that is called by our class's name with plain numbers or constants."""
    called = module.class_of(node.func) if isinstance(node, ast.Call) else None
    if called is None or called.path != f"{Range.__module__}.{Range.__name__}":
        return None
    assert isinstance(node, ast.Call)
    try:
        bounds = [_number(module, value) for value in node.args]
        return Range(*bounds, **{k.arg or "": _number(module, k.value) for k in node.keywords})
    except (ValueError, TypeError):  # computed in another way: only Python knows
        return None


def _number(module: Module, node: ast.expr) -> float:
    """A number, or the constant that has it.

    Raises:
        TypeError: it is no number.
        ValueError: it is computed.
    """
    found = module.look_up(node)
    value = ast.literal_eval(found[1] if found and isinstance(found[1], ast.expr) else node)
    if not isinstance(value, int | float):
        raise TypeError(value)
    return value
