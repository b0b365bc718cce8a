"""Imports point one way, so that a room can be read without the rooms above it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each may import what stands under it, and its own package; of those beside it nothing.
LAYERS = [
    ["gmf_platform.__main__"],
    ["gmf_platform.cli"],
    [
        "gmf_platform.tasks",
        "gmf_platform.callbacks",
        "gmf_platform.deploy",
        "gmf_platform.benchmark",
    ],
    ["datamodules", "gmf_platform.evaluation", "gmf_platform.optim"],
    ["gmf_platform.distributed", "gmf_platform.models", "gmf_platform.cluster"],
    ["gmf_platform.errors", "gmf_platform.ranges", "gmf_platform._own_datamodules"],
]
ROOMS = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}

# `gmf_platform/__init__.py` gives away the version and the error, and nothing that is slow.
SLOW = {"torch", "lightning", "numpy", "cv2", "torchvision", "timm", "albumentations"}


def modules():
    """Each module of ours by its dotted name."""
    for package in ("gmf_platform", "datamodules"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(modules())


def imported(path):
    """Dotted names that a module imports anywhere in it, with their lines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole if whole in MODULES else node.module), node.lineno


def room(module):
    """The room of a module of ours; None for the top of gmf_platform and for others' modules."""
    return next((r for r in ROOMS if module == r or module.startswith(f"{r}.")), None)


def test_every_module_is_in_a_room():
    assert [name for name in MODULES if room(name) is None] == ["gmf_platform"]


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name):
    here = room(name)
    for target, line in imported(MODULES[name]):
        there = room(target)
        if there is None or there == here or here is None:
            continue
        assert ROOMS[there] > ROOMS[here], f"{MODULES[name]}:{line}: {here} imports {there}"


def test_models_stand_alone():
    """Plain PyTorch: nothing of ours but the error and ranges, no Lightning, no data."""
    for name, path in MODULES.items():
        if room(name) != "gmf_platform.models":
            continue
        for target, line in imported(path):
            where = f"{path}:{line}: {target}"
            assert target.partition(".")[0] not in ("lightning", "datamodules", "cv2"), where
            assert room(target) in (None, "gmf_platform.models", *LAYERS[-1]), where


def test_the_top_imports_nothing_slow():
    quick = ["gmf_platform", "gmf_platform.errors", "gmf_platform._own_datamodules"]
    quick += ["datamodules", "datamodules.layouts", "gmf_platform.cluster.signals"]
    for name in quick:
        tree = ast.parse(MODULES[name].read_text())
        checked = (n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom))
        for node in checked:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
            assert not SLOW & {n.partition(".")[0] for n in names}, f"{name}:{node.lineno}"
