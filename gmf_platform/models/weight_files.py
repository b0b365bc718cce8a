"""What a file of weights holds, read without running code from it."""

import argparse
import json
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from gmf_platform.errors import UserError
from gmf_platform.models.weight_folders import read_folder

__all__ = ["FACTS", "read_content", "read_facts"]

FACTS = "gmf_platform"
"""Key under which our files keep what they say beside their tensors."""

_PLAIN = [(OrderedDict, "yacs.config.CfgNode"), argparse.Namespace]
"""Settings that training checkpoints carry beside their tensors: read as plain dictionaries, so
that the class itself is neither needed nor called."""


def read_content(path: Path) -> Any:
    """What a file, or a folder of shards, holds; tensors are on the CPU, perhaps mapped.

    Raises:
        UserError: it is damaged, or asks to run code.
    """
    if path.is_dir():
        return read_folder(path)
    return _read_safetensors(path) if path.suffix == ".safetensors" else _unpickle(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with _readable(path):
        return load_file(path)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise UserError(f"Weights {path}: not a readable safetensors file ({error}).") from error


def _unpickle(path: Path) -> Any:
    try:
        mmap = zipfile.is_zipfile(path)  # the format of torch.save since 1.6 can be mapped
        with warnings.catch_warnings(), torch.serialization.safe_globals(_PLAIN):  # type: ignore[arg-type]  # pairs too
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # an error says it
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # a damaged pickle can fail in any way
        refused = re.search(r"GLOBAL (\w+\.[\w.]+)", str(error))
        if refused is None and _is_strange_pickle(path, error):
            raise UserError(
                f"Weights {path}: refused, nothing was run. The file is a pickle that torch.save "
                "has not written, and such files can do harm. If you trust its origin, save its "
                "state dict alone, as .safetensors or with torch.save, and give that."
            ) from error
        if refused is None:
            # The first sentence: the next ones of torch advise to switch the safety off.
            sentence, *_ = re.split(r"[.]\s", str(error))
            reason = f"{type(error).__name__}: {sentence}" if sentence else "it ends too early"
            raise UserError(
                f"Weights {path}: not a readable file of torch.save or safetensors, or damaged "
                f"({reason})."
            ) from error
        raise UserError(
            f"Weights {path}: refused, nothing was run. To load, the file asks to call "
            f"{refused[1]}, and files can do harm that way; only tensors and plain types "
            "(numbers, text, lists, dicts) are read. If you trust its origin, save its state dict "
            "alone, as .safetensors or with torch.save, and give that."
        ) from error


def _is_strange_pickle(path: Path, error: Exception) -> bool:
    """Whether torch has refused a pickle of a protocol that it does not write, from 4 on."""
    with path.open("rb") as file:
        return file.read(1) == b"\x80" and "Unsupported operand" in str(error)


def read_facts(path: Path) -> dict[str, Any]:
    """What a checkpoint of ours, or a file that `convert` made of one, says beside its tensors.

    Returns:
        ``global_step``, ``class_names``, ``config`` (the run's, YAML), ``scores`` (of the
        validation that the weights were saved after, by name) and, of detectors,
        ``category_ids``; files of earlier releases lack some, those of another origin all.

    Raises:
        UserError: the file is damaged, or asks to run code.
    """
    if path.suffix == ".safetensors":
        with _readable(path), safe_open(path, framework="pt") as file:
            return dict(json.loads((file.metadata() or {}).get(FACTS, "{}")))
    content = read_content(path)
    if not isinstance(content, Mapping) or FACTS not in content:
        return {}
    return {"global_step": content["global_step"], **content[FACTS]}
