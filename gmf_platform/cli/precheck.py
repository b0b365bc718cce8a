"""Checks of paths that answer before torch is imported."""

from pathlib import Path

from datamodules.layouts import CHECKS, LAYOUTS, UNDIVIDED, check_root
from gmf_platform.cli.sources import Sources
from gmf_platform.errors import UserError

__all__ = ["NO_WEIGHTS", "check_checkpoint", "check_data", "check_init_from"]

NO_WEIGHTS = "none"
"""The value of ``init_from`` that trains from scratch knowingly."""


def check_data(sources: Sources) -> None:
    """Check that the data set's files are there.

    Raises:
        UserError: see the checks of datamodules.layouts.
    """
    root, class_path = sources.value("data.root"), sources.value("data.class_path")
    check = CHECKS.get(str(class_path))
    if check is not None:
        names = {e.key.removeprefix("data.") for e in sources.entries if e.key.startswith("data.")}
        check({name: sources.value(f"data.{name}") for name in names})
        return
    layout = LAYOUTS.get(str(class_path))
    if root is not None and layout is not None:
        is_divided = all(sources.value(f"data.{key}") is None for key in UNDIVIDED)
        check_root(Path(str(root)), layout, is_divided=is_divided)


def check_init_from(sources: Sources) -> None:
    """Check that the weights to begin with are there.

    Raises:
        UserError: the file is missing; the message says where to get it.
    """
    path = sources.value("init_from")
    if path is None or str(path) == NO_WEIGHTS or Path(str(path)).exists():
        return
    raise UserError(
        f"init_from: no file {path} ({sources.place('init_from')}).\n"
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
