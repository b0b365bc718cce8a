"""Checks of paths that answer before torch is imported."""

from collections.abc import Mapping
from pathlib import Path

from datamodules.layouts import CHECKS, LAYOUTS, UNDIVIDED, check_root
from gmf_platform.cli.sources import Sources
from gmf_platform.errors import UserError, keys_of_task

__all__ = ["NO_WEIGHTS", "check_checkpoint", "check_data", "check_init_from"]

NO_WEIGHTS = "none"
"""The value of ``init_from`` that trains from scratch knowingly."""


def check_data(sources: Sources) -> None:
    """Check that the files of the data set, or of each task's, are there.

    Raises:
        UserError: see the checks of datamodules.layouts.
    """
    begin = "data.tasks."
    keys = [e.key.removeprefix(begin) for e in sources.entries if e.key.startswith(begin)]
    tasks = dict.fromkeys(key.partition(".")[0] for key in keys)
    for name in tasks:
        if not sources.is_removed(f"{begin}{name}"):
            with keys_of_task(name):
                _check_set(sources, f"{begin}{name}")
    if not tasks:
        _check_set(sources, "data")


def _check_set(sources: Sources, part: str) -> None:
    root, class_path = sources.value(f"{part}.root"), sources.value(f"{part}.class_path")
    check = CHECKS.get(str(class_path))
    if check is not None:
        begin = f"{part}."
        names = {e.key.removeprefix(begin) for e in sources.entries if e.key.startswith(begin)}
        check({name: sources.value(f"{begin}{name}") for name in names})
        return
    layout = LAYOUTS.get(str(class_path))
    if root is not None and layout is not None:
        is_divided = all(sources.value(f"{part}.{key}") is None for key in UNDIVIDED)
        check_root(Path(str(root)), layout, is_divided=is_divided)


def check_init_from(sources: Sources) -> None:
    """Check that the weights to begin with are there.

    Raises:
        UserError: the file is missing; the message says where to get it.
    """
    own = [entry for entry in sources.entries if not entry.inside]
    given = [e for e in own if e.key == "init_from" or e.key.startswith("init_from.")]
    whole = bool(given) and given[-1].key == "init_from"  # what is said last counts
    keys = dict.fromkeys(e.key for e in given if (e.key == "init_from") == whole)
    for key in keys:
        _check_weights(sources, key)


def _check_weights(sources: Sources, key: str) -> None:
    path = sources.value(key)
    paths = list(path.values()) if isinstance(path, Mapping) else [path]
    missing = [p for p in paths if not (p in (None, NO_WEIGHTS) or Path(str(p)).exists())]
    if not missing:
        return
    raise UserError(
        f"{key}: no file {missing[0]} ({sources.place(key)}).\n"
        "  - ImageNet weights: the authors' files are linked in the Model Zoo table of "
        "github.com/AILab-CVC/GroupMixFormer; save the one of your variant there, or name it "
        "with --init_from FILE\n"
        "  - to train from scratch knowingly: --init_from none"
    )


def check_checkpoint(path: Path | None) -> None:
    """Check that a checkpoint named on the command line exists.

    Raises:
        UserError: it does not; checkpoints beside it are named.
    """
    if path is None or path.exists():
        return
    folder = path.parent
    beside = sorted(p.name for p in folder.glob("*.ckpt")) if folder.is_dir() else []
    hint = f"; in {folder} there are: {', '.join(beside)}" if beside else ""
    raise UserError(f"--ckpt_path: no file {path}{hint}")
