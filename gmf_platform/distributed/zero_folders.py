"""DeepSpeed's checkpoint folders: of how many processes, and for any number of them."""

import re
import subprocess
import sys
from pathlib import Path

from gmf_platform.errors import UserError

__all__ = ["to_universal", "zero_processes"]


def zero_processes(path: Path) -> int | None:
    """How many processes a checkpoint was saved by; None if it is not one of DeepSpeed's."""
    if not (path / "latest").is_file():
        return None
    tag = (path / "latest").read_text().strip()
    names = (file.name for file in (path / tag).glob("*_optim_states.pt"))
    ranks = {match[1] for name in names if (match := re.search(r"zero_pp_rank_(\d+)_", name))}
    return len(ranks)


def to_universal(path: Path, target: Path) -> None:
    """Write DeepSpeed's universal form of a checkpoint, which any number of processes can load.

    Args:
        path: a checkpoint folder.
        target: the folder to write.

    Raises:
        UserError: DeepSpeed could not; with what it said.
    """
    tag = (path / "latest").read_text().strip()
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--inject_missing_state", "--num_extract_workers", "1", "--num_merge_workers", "1"]
    command += ["--input_folder", str(path / tag), "--output_folder", str(target / tag)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{path}: DeepSpeed could not convert it:\n{done.stderr[-2000:]}")
    (target / "latest_universal").write_text(tag)
