import importlib
import subprocess
import sys

import pytest

from gmf_platform.cli.class_lookup import imported_signature
from gmf_platform.cli.class_source import find_class, module_names
from gmf_platform.cli.signatures import read_signature

PACKAGES = (
    "gmf_platform.tasks",
    "gmf_platform.models.backbones",
    "gmf_platform.models.heads",
    "gmf_platform.models.losses",
    "gmf_platform.optim",
    "gmf_platform.callbacks",
    "datamodules",
)

OTHERS = [
    "torch.optim.AdamW",
    "torch.optim.SGD",
    "torch.nn.CrossEntropyLoss",
    "lightning.pytorch.Trainer",
    "lightning.pytorch.callbacks.EarlyStopping",
    "gmf_platform.distributed.DDP",
    "gmf_platform.distributed.FSDP",
    "gmf_platform.distributed.ZeRO",
    "gmf_platform.evaluation.SlidingWindow",
    "gmf_platform.evaluation.DetectionTestTimeAugmentation",
]


def shipped():
    for name in PACKAGES:
        package = importlib.import_module(name)
        yield from (f"{name}.{n}" for n in package.__all__ if isinstance(getattr(package, n), type))


def test_the_source_tells_what_the_class_does():
    """Python's own `inspect` is the reference: names, order, and which must be given."""
    for path in [*shipped(), *OTHERS]:
        module, _, name = path.rpartition(".")
        cls = getattr(importlib.import_module(module), name)
        if issubclass(cls, tuple):
            continue  # a NamedTuple is made by __new__
        imported, read = imported_signature(cls), read_signature(path)
        assert read is not None, path
        assert list(read.parameters) == list(imported.parameters), path
        for name, parameter in imported.parameters.items():
            is_needed = read.parameters[name].default is None
            assert is_needed == (parameter.default is None), f"{path}: {name}"


def test_nothing_slow_is_imported():
    code = (
        "import sys; from gmf_platform.cli.signatures import read_signature;"
        "assert read_signature('gmf_platform.tasks.SegmentationTask').parameters;"
        "assert read_signature('lightning.pytorch.Trainer').parameters;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'lightning', 'numpy')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


SOURCE = """
from dataclasses import dataclass
from typing import Any, Callable, Literal, Optional, Union
import torch

Mode = Literal["slow", "fast"]
Maker = Callable[[int, str], torch.nn.Module]

@dataclass(frozen=True)
class Limits:
    '''How far to go.

    Attributes:
        low: the least,
            and no less.
        high: the most.
    '''

    low: float = 0.0
    high: float = 1.0

WIDE = Limits(-5, high=5)

class Base:
    def __init__(self, *, seed: int = 0, name: str):
        '''Be.

        Args:
            seed: of all.
        '''

class Thing(Base):
    '''A thing. It does: much.

    Args:
        mode: how
            (quickly: or not).
        maker: makes it.
        limits: see Limits.

    Raises:
        ValueError: never.
    '''

    def __init__(self, mode: Mode = "fast", maker: Maker | None = None, limits: Limits = WIDE,
                 sizes: Optional[list[int]] = None, both: Union[int, "str"] = 3, free=(1, True),
                 one: bool | Literal["auto"] = "auto", **others: Any) -> None:
        super().__init__(**others)
"""


NUMBERS = """
from typing import Annotated, Literal, Optional
from gmf_platform.ranges import PositiveFloat, Range, UnitInterval
from bounds_of_mine import Whole

Own = Annotated[int, Range(-2, most=3.5)]

class First:
    def __init__(self, whole: Whole, shares: Optional[list[UnitInterval]], pair: tuple[Own, Own],
                 mixed: tuple[Whole, float],
                 by_name: dict[str, PositiveFloat], plain: int, words: Literal["slow", "fast"]): ...

class Second(First): ...
"""


@pytest.fixture
def thing(modules):
    modules("things_of_mine", SOURCE)
    return read_signature("things_of_mine.Thing")


def test_types_and_defaults(thing):
    assert thing.summary == "A thing. It does: much."
    told = {p.name: (" | ".join(p.types), p.default) for p in thing.parameters.values()}
    assert told == {
        "mode": ("slow | fast", "fast"),
        "maker": ("class | null", "null"),
        "limits": ("class", "WIDE"),
        "sizes": ("list[int] | null", "null"),
        "both": ("int | str", "3"),
        "free": ("any", "[1, true]"),
        "one": ("bool | auto", "auto"),
        "seed": ("int", "0"),
        "name": ("str", None),
    }
    assert thing.parameters["maker"].passed == 2
    assert thing.parameters["mode"].choices == ("slow", "fast")
    assert dict(thing.parameters["limits"].given) == {"low": "-5", "high": "5"}
    assert thing.parameters["limits"].settings.path == "things_of_mine.Limits"


def test_words(thing):
    words = {p.name: p.words for p in thing.parameters.values() if p.words}
    assert words == {
        "mode": "how (quickly: or not).",
        "maker": "makes it.",
        "limits": "see Limits.",
        "seed": "of all.",
    }
    limits = read_signature("things_of_mine.Limits")
    assert limits.parameters["low"].words == "the least, and no less."


@pytest.mark.parametrize(
    ("name", "takes", "not_takes"),
    [
        ("mode", ["fast"], ["faster", 3]),
        ("both", [3, "three"], []),
        ("one", [True, "auto"], ["auto2", 3.5]),
        ("seed", [3, 3.0, "3"], ["three", True, 3.5]),
        ("free", [3, "x", None], []),
    ],
)
def test_what_a_parameter_takes(thing, name, takes, not_takes):
    parameter = thing.parameters[name]
    assert all(map(parameter.takes, takes))
    assert not any(map(parameter.takes, not_takes))


def test_expected(thing):
    assert thing.parameters["maker"].expected == "a class (class_path: MODULE.CLASS) or null"
    assert thing.parameters["mode"].expected == "slow or fast"


def test_ranges(modules):
    modules("bounds_of_mine", "from gmf_platform.ranges import PositiveInt as Whole\n")
    modules("numbers_of_mine", NUMBERS)
    for name in ("numbers_of_mine.First", "numbers_of_mine.Second"):  # of one module, read once
        told = {
            p.name: (" | ".join(p.types), p.range and str(p.range))
            for p in read_signature(name).parameters.values()
        }
        assert told == {
            "whole": ("int", "1 or more"),
            "shares": ("list[float] | null", "0 to 1"),
            "pair": ("tuple[int, int]", "-2 to 3.5"),
            "mixed": ("tuple[int, float]", None),
            "by_name": ("dict[str, float]", "above 0"),
            "plain": ("int", None),
            "words": ("slow | fast", None),
        }


def test_classes_are_found_through_imports(modules):
    modules("first_of_two", "from second_of_two import *\nfrom second_of_two import A as B\n")
    modules("second_of_two", "class A: ...\nif True:\n    class C: ...\n")
    assert find_class("first_of_two.A").path == "second_of_two.A"
    assert find_class("first_of_two.B").path == "second_of_two.A"
    assert find_class("first_of_two.C").path == "second_of_two.C"
    assert find_class("first_of_two.D") is None
    assert find_class("nowhere_at_all.A") is None


def test_imports_in_a_circle(modules):
    modules("circle_one", "from circle_two import A\n")
    modules("circle_two", "from circle_one import A\n")
    assert find_class("circle_one.A") is None


def test_module_names():
    assert {"tasks", "models"} <= {*module_names("gmf_platform")}
    assert "torch" in module_names("")


ODD = """
import math
import typing
from typing import Annotated, Callable, Literal
import gmf_platform.ranges as r
import gmf_platform.ranges
from gmf_platform import ranges
from gmf_platform.ranges import PositiveInt, Range, UnitInterval
from ranges_of_others import Range as Theirs

MOST = 7
Of = PositiveInt

class Thing:
    def __init__(self, behind: r.PositiveInt, dotted: gmf_platform.ranges.PositiveInt,
                 module: "ranges.UnitInterval | None", quoted: list["PositiveInt"],
                 alias: list[Of], more: typing.Annotated[float, "of it", r.Range(0, 1), 3],
                 constant: Annotated[int, Range(1, most=MOST)], values: dict[PositiveInt, UnitInterval],
                 made: Callable[[int], UnitInterval], computed: Annotated[float, Range(0, math.pi)],
                 star: Annotated[float, Range(*(0, 1))], text: Annotated[float, Range("a", b=1)],
                 theirs: Annotated[int, Theirs(10)], either: PositiveInt | UnitInterval,
                 off: PositiveInt | Literal[-1], auto: PositiveInt | Literal["auto"]): ...
"""


def test_ranges_written_in_other_ways(modules):
    modules("ranges_of_others", "class Range:\n    def __init__(self, stop): ...\n")
    modules("odd_ranges", ODD)
    parameters = read_signature("odd_ranges.Thing").parameters.values()
    assert {p.name: p.range and str(p.range) for p in parameters} == {
        **dict.fromkeys(("behind", "dotted", "quoted", "alias", "auto"), "1 or more"),
        **dict.fromkeys(("module", "more", "values"), "0 to 1"),
        "constant": "1 to 7",
        **dict.fromkeys(("made", "computed", "star", "text", "theirs", "either", "off"), None),
    }
    types = {p.name: p.types for p in parameters}
    assert types["behind"] == types["dotted"] == types["constant"] == ("int",)
    assert types["quoted"] == ("list['PositiveInt']",)
