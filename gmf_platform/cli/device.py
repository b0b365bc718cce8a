"""Says so when an NVIDIA device is there that torch cannot use."""

import os
from pathlib import Path

import torch

from gmf_platform.cluster.surroundings import driver_version
from gmf_platform.errors import UserError

__all__ = ["check_device"]

_DEVICES = Path("/dev")  # a container that was given no GPU sees the driver but no device


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
