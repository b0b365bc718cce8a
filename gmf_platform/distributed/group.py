"""The process group of a start by torchrun, which may be one of several."""

import atexit
import os
import time
from datetime import timedelta
from uuid import uuid4

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

__all__ = ["agree_on_attempt", "join_group"]

_PAUSE = 0.05


def join_group(backend: str, *, device: torch.device, timeout: timedelta) -> None:
    """Join the group of this attempt; what torchrun has not started is left to Lightning.

    torchrun's store outlives a restart, with the addresses of the processes of before in it: a
    process that comes before the first one connects to that one's last life, and fails. Each
    attempt therefore gets a name of its own, under which it keeps its keys.

    Args:
        backend: ``nccl`` or ``gloo``.
        device: of this process.
        timeout: for joining, and for each collective later on.

    Raises:
        RuntimeError: a rank has not come in time.
    """
    if dist.is_initialized() or "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    is_agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=not is_agents and rank == 0,
        wait_for_workers=False,
        timeout=timeout,
    )
    attempt = agree_on_attempt(store, rank=rank, world_size=world_size, timeout=timeout)
    dist.init_process_group(
        backend,
        store=PrefixStore(attempt, store),
        rank=rank,
        world_size=world_size,
        timeout=timeout,
        device_id=None if device.type == "cpu" else device,
    )
    atexit.register(_leave_group)


def agree_on_attempt(store: Store, *, rank: int, world_size: int, timeout: timedelta) -> str:
    """A name for this attempt that all ranks know, and none of an attempt before.

    torchrun's count of restarts would not do: nodes count their own workers' failures.

    Each rank shows the first one a name that it has never had before, and is answered under it.
    What is left of the dead is answered too, and harms nobody.

    Raises:
        RuntimeError: a rank has not come in time.
    """
    own = uuid4().hex
    if rank > 0:
        store.set(f"hello/{rank}", own)
        attempt: str = store.get(f"answer/{own}").decode()
        store.set(f"joined/{attempt}/{rank}", "")
        return attempt
    missing = set(range(1, world_size))
    end = time.monotonic() + timeout.total_seconds()
    while missing:
        for other in missing:
            if store.check([f"hello/{other}"]):
                store.set(f"answer/{store.get(f'hello/{other}').decode()}", own)
        missing = {other for other in missing if not store.check([f"joined/{own}/{other}"])}
        if missing and time.monotonic() > end:
            names = ", ".join(map(str, sorted(missing)))
            raise RuntimeError(f"rank {names} has not come within {timeout}")
        time.sleep(_PAUSE if missing else 0)
    return own


def _leave_group() -> None:
    """NCCL wants to be told."""
    if dist.is_initialized() and dist.get_backend() == "nccl":
        dist.destroy_process_group()
