"""The device of a run: the one that was meant, and on a CPU its memory."""

import ctypes
import os
import platform
from pathlib import Path

import torch

from gmf_platform.cluster.surroundings import driver_version
from gmf_platform.errors import UserError

__all__ = ["check_device", "keep_freed_memory", "prepare_device"]

_DEVICES = Path("/dev")  # a container that was given no GPU sees the driver but no device

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Names of malloc.h."""


def prepare_device(accelerator: str) -> None:
    """Make sure that the device is the one that was meant; on a CPU, keep memory at hand.

    Args:
        accelerator: ``trainer.accelerator``.

    Raises:
        UserError: see `check_device`.
    """
    check_device(accelerator)
    if accelerator == "cpu" or not torch.cuda.is_available():
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Have the C library keep freed memory of this process for what is allocated next.

    By default glibc returns large blocks to the system as they are freed, and the next training
    step gets them back page by page, which takes a tenth to a fifth of its time on a CPU. With
    another C library, or where the user has settings for malloc, all stays as it is.
    """
    settings = ("MALLOC_", "GLIBC_TUNABLES")
    if platform.libc_ver()[0] != "glibc" or any(name.startswith(settings) for name in os.environ):
        return
    mallopt, most = ctypes.CDLL(None).mallopt, 2**31 - 1
    # Only both together: the second alone would have every block returned from 128 KiB on.
    if mallopt(_M_MMAP_THRESHOLD, most):
        mallopt(_M_TRIM_THRESHOLD, most)


def check_device(accelerator: str) -> None:
    """Refuse to train on the CPU by accident.

    Args:
        accelerator: ``trainer.accelerator``; ``cpu`` is a decision, and passes.

    Raises:
        UserError: a driver is loaded but torch sees no device; names driver, build and remedy.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    driver = driver_version()
    present = driver is not None and any(_DEVICES.glob("nvidia[0-9]*"))
    if accelerator == "cpu" or hidden or torch.cuda.is_available() or not present:
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    raise UserError(
        f"an NVIDIA device is here (driver {driver}), but this torch ({torch.__version__}, "
        f"{build}) cannot use it.\n"
        "  - install the torch build for your driver: docs/installation.md says which\n"
        "  - or train on the CPU knowingly: --trainer.accelerator cpu"
    )
