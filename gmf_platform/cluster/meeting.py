"""Processes of a job that meet before any training, and know by name who has not come.

A key-value store rather than collectives: those wait for ever, or fail without a name.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from gmf_platform.errors import UserError

__all__ = ["Absent", "Meeting", "Place", "all_reduce_speed", "own_place"]

_SPECIAL_STEPS = 0xFFFFFFF0
"""Steps from here on are none of srun's: salloc's shell, the batch script (slurm.h)."""


class Absent(UserError):
    """Processes have not come, or have not answered, in time."""


@dataclass(frozen=True)
class Place:
    """Where this process stands among those of its job.

    Attributes:
        rank: its number in the job.
        world_size: processes of the job.
        local_rank: its number on this node.
        launcher: who has started them.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    launcher: str = "by hand"


def own_place() -> Place:
    """The place that torchrun or srun has given to this process."""
    of = os.environ
    if "TORCHELASTIC_RUN_ID" in of:
        return _place("RANK", "WORLD_SIZE", "LOCAL_RANK", launcher="by torchrun")
    in_step = int(of.get("SLURM_STEP_ID", _SPECIAL_STEPS)) < _SPECIAL_STEPS
    if in_step and int(of.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        names = "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"
        return _place(*names, launcher="by srun")
    return Place()


def _place(rank: str, world_size: str, local_rank: str, *, launcher: str) -> Place:
    numbers = [int(os.environ[name]) for name in (rank, world_size, local_rank)]
    return Place(numbers[0], numbers[1], numbers[2], launcher)


class Meeting:
    """All processes of a job, in touch.

    Args:
        place: of this process.
        seconds: how long to wait for another process, when meeting and at each later point.

    Raises:
        Absent: the first process cannot be reached.
    """

    def __init__(self, place: Place, *, seconds: float) -> None:
        self.place, self.seconds = place, seconds
        self.store: Any = None if place.world_size == 1 else _store(place, seconds)

    def gather(self, topic: str, own: Any) -> list[Any]:
        """What each process says to a topic, by rank.

        Args:
            topic: a name that is used once.
            own: what this process says; plain types, for it travels as JSON.

        Raises:
            Absent: processes have said nothing in time; they are named.
        """
        if self.store is None:
            return [own]
        keys = [f"{topic}/{rank}" for rank in range(self.place.world_size)]
        try:
            self.store.set(keys[self.place.rank], json.dumps(own))
            self.store.wait(keys, timedelta(seconds=self.seconds))
            return [json.loads(value) for value in self.store.multi_get(keys)]
        except RuntimeError:
            raise Absent(self._who_is_missing(keys)) from None

    def _who_is_missing(self, keys: Sequence[str]) -> str:
        try:
            ranks = [str(rank) for rank, key in enumerate(keys) if not self.store.check([key])]
        except RuntimeError:  # the first process holds the store
            return "rank 0 has left; its own output tells why"
        nodes = os.environ.get("SLURM_JOB_NODELIST")
        return (
            f"rank {', '.join(ranks)} of {self.place.world_size} has not come within "
            f"{self.seconds:.0f} s: it was not started, has died, or cannot reach rank 0; its own "
            f"output tells which{f' (nodes of the job: {nodes})' if nodes else ''}"
        )

    def leave(self) -> None:
        """Go; the first process holds the store, and is the last to do so."""
        if self.place.rank == 0:
            self.gather("leaving", None)
        elif self.store is not None:
            self.store.set(f"leaving/{self.place.rank}", "null")


def _store(place: Place, seconds: float) -> Any:
    address, port = _address()
    is_agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        store = TCPStore(
            address,
            port,
            is_master=place.rank == 0 and not is_agents,
            wait_for_workers=False,
            timeout=timedelta(seconds=seconds),
        )
    except RuntimeError as error:
        raise Absent(
            f"rank 0 cannot be reached at {address}:{port} within {seconds:.0f} s by rank "
            f"{place.rank} on {os.uname().nodename}: it has not come, or the network between the "
            f"nodes does not let this port pass ({str(error).splitlines()[0]})"
        ) from None
    # torchrun's store outlives a start; its count of restarts tells them apart well enough here.
    return PrefixStore(f"preflight-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _address() -> tuple[str, int]:
    if "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
        return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    slurm = SLURMEnvironment(auto_requeue=False)
    return slurm.main_address, slurm.main_port


def all_reduce_speed(
    meeting: Meeting, backend: str, *, device: torch.device, most_bytes: int, seconds: float = 3.0
) -> tuple[int, float]:
    """Make all-reduces over all processes, and measure the last ones.

    Args:
        meeting: of the processes; more than one.
        backend: ``nccl`` or ``gloo``.
        device: of this process.
        most_bytes: the largest tensor to be summed; a smaller one where the network is slow.
        seconds: about as long as it may take.

    Returns:
        Bytes of the tensor, and seconds of the fastest all-reduce.

    Raises:
        UserError: the sum is wrong.
        RuntimeError: as the backend raised it, where the processes cannot be connected.
    """
    place = meeting.place
    dist.init_process_group(
        backend,
        store=PrefixStore("group", meeting.store),
        rank=place.rank,
        world_size=place.world_size,
        timeout=timedelta(seconds=meeting.seconds),
        device_id=None if device.type == "cpu" else device,
    )
    try:
        _check_sum(place, device)
        small = _timed(min(most_bytes, 1 << 20), device, times=3)
        # All must take the same size: the slowest decides.
        estimate = torch.tensor([small], device=device)
        dist.all_reduce(estimate, op=dist.ReduceOp.MAX)
        affordable = max(1, int(seconds / 4 / float(estimate))) << 20
        size = min(most_bytes, affordable)
        return size, _timed(size, device, times=3)
    finally:
        dist.destroy_process_group()


def _check_sum(place: Place, device: torch.device) -> None:
    own = torch.tensor([float(place.rank + 1)], device=device)
    dist.all_reduce(own)
    expected = place.world_size * (place.world_size + 1) / 2
    if float(own) != expected:
        raise UserError(f"1 + ... + {place.world_size} over all processes gave {float(own)}")


def _timed(size: int, device: torch.device, *, times: int) -> float:
    """Seconds of the fastest of some all-reduces of so many bytes."""
    tensor = torch.zeros(max(1, size // 4), device=device)
    wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    dist.all_reduce(tensor)  # connections are made by the first one
    seconds = []
    for _ in range(times):
        wait()
        begun = time.perf_counter()
        dist.all_reduce(tensor)
        wait()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)
