"""Checkpoints that are folders of shards: FSDP2's and DeepSpeed's."""

import io
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from gmf_platform.errors import UserError

__all__ = ["is_folder_of_shards", "read_folder"]

_BESIDE = "meta.pt"
"""Where Lightning keeps what is not in shards."""

_ENGINE = "mp_rank_00_model_states.pt"
"""The file of a DeepSpeed checkpoint that holds what is not in shards."""


def is_folder_of_shards(path: Path) -> bool:
    """Whether a folder looks like a checkpoint of FSDP2's or DeepSpeed's."""
    return (path / ".metadata").is_file() or (path / "latest").is_file()


def read_folder(path: Path) -> dict[str, Any]:
    """Join a folder of shards to what one file would hold.

    DeepSpeed's files are pickles that name its own classes, so they are read without the
    protection that all other files get: read those of people you trust.

    Args:
        path: the folder.

    Returns:
        ``state_dict`` in float32 on the CPU, and what the run saved beside it.

    Raises:
        UserError: it is no such folder, or shards are missing or damaged.
    """
    try:
        if (path / ".metadata").is_file():
            return _read_fsdp(path)
        if (path / "latest").is_file():
            return _read_zero(path)
    except UserError:
        raise
    except (Exception, CheckpointException) as error:  # a damaged shard can fail in any way
        failures = error.failures.values() if isinstance(error, CheckpointException) else ()
        first = next((failure for failure, _ in failures), error)
        sentence = str(first).partition("\n")[0]
        raise UserError(
            f"Weights {path}: a shard is missing or damaged ({type(first).__name__}: {sentence})"
        ) from error
    raise UserError(
        f"Weights {path}: is a folder, but no checkpoint of FSDP (a file .metadata) or DeepSpeed "
        "(a file latest). Give a weights file, or a checkpoint's own folder."
    )


def _read_fsdp(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = {}
    _load_state_dict(
        content,
        storage_reader=FileSystemReader(path),
        planner=_EmptyStateDictLoadPlanner(),
        no_dist=True,
    )
    if (path / _BESIDE).is_file():
        content |= torch.load(path / _BESIDE, map_location="cpu", weights_only=True)
    content["state_dict"] = content.pop("state_dict", None) or content.pop("model")
    return content


def _read_zero(path: Path) -> dict[str, Any]:
    try:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    except ImportError:
        raise UserError(
            f"Weights {path}: to read DeepSpeed's shards, pip install 'gmf_platform[deepspeed]'"
        ) from None
    tag = (path / "latest").read_text().strip()
    engines = sorted((path / tag).glob(f"*{_ENGINE}"))
    if not engines:
        raise UserError(f"Weights {path}: {path / tag} has no file *{_ENGINE}: it is not whole")
    beside = torch.load(engines[0], map_location="cpu", weights_only=False)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # a bar for each shard
        tensors: Mapping[str, Tensor] = get_fp32_state_dict_from_zero_checkpoint(str(path), tag)
    run = {key: value for key, value in beside.items() if key in _OF_THE_RUN}
    return run | {"state_dict": dict(tensors)}


_OF_THE_RUN = {"gmf_platform", "global_step", "loops", "callbacks", "epoch", "average"}
