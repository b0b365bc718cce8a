"""What a process can find out about the machine and the job that it is in."""

import os
import re
import resource
import shutil
import subprocess
import time
from contextlib import suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = [
    "code_version",
    "driver_version",
    "free_bytes",
    "gpus_per_node",
    "job_nodes",
    "open_files",
    "package_versions",
    "seconds_to_limit",
    "shared_memory",
]

_PACKAGES = ("torch", "lightning", "torchvision", "timm", "numpy", "deepspeed")
_DRIVER = Path("/proc/driver/nvidia/version")
_SECONDS = 10


def package_versions() -> dict[str, str]:
    """Versions of what must be the same on all nodes; of what is installed."""
    found = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def code_version(folder: Path) -> str:
    """The commit that a checkout is at, with what it was changed by; empty outside one."""
    commit = _answer("git", "-C", str(folder), "rev-parse", "--short=12", "HEAD")
    changes = _answer("git", "-C", str(folder), "diff", "HEAD", "--stat")
    return f"{commit} changed ({changes.splitlines()[-1].strip()})" if changes else commit


def driver_version() -> str | None:
    """Version of NVIDIA's driver; None where none is loaded."""
    if not _DRIVER.is_file():
        return None
    found = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)\s", _DRIVER.read_text())
    return found[1] if found else "unknown"


def shared_memory() -> int:
    """Free bytes of /dev/shm."""
    with suppress(OSError):
        return shutil.disk_usage("/dev/shm").free
    return 0


def open_files() -> int:
    """How many files this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 30


def free_bytes(folder: Path) -> int:
    """Room on the disk that a folder is on, or will be."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def job_nodes() -> int | None:
    """Nodes of the Slurm job; None outside one."""
    nodes = os.environ.get("SLURM_JOB_NUM_NODES")
    return None if nodes is None else int(nodes)


def gpus_per_node() -> int | None:
    """GPUs that Slurm has given the job on this node; None if none, or outside a job."""
    count = os.environ.get("SLURM_GPUS_ON_NODE", "")
    return int(count) if count.isdigit() else None


def seconds_to_limit() -> float | None:
    """To the end of the Slurm job's time; None if it has no limit, or outside a job."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return None
    if "SLURM_JOB_END_TIME" in os.environ:
        return int(os.environ["SLURM_JOB_END_TIME"]) - time.time()
    with suppress(ValueError):  # "Unknown" for none
        end = datetime.fromisoformat(
            _answer("squeue", "--noheader", "--job", job, "--format", "%e")
        )
        return end.timestamp() - time.time()
    return None


def _answer(*command: str) -> str:
    """What a command writes; empty if it fails or there is none."""
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_SECONDS
        )
        return done.stdout.strip() if done.returncode == 0 else ""
    return ""
