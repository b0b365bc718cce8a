"""Python objects from all processes to the first, and back."""

from functools import lru_cache
from typing import Any, TypeVar

import torch.distributed as dist

__all__ = ["from_first", "to_first"]

T = TypeVar("T")


def to_first(part: T) -> list[T] | None:
    """Gather an object of each process on process 0, in the order of ranks.

    Every process has to call it, with whatever it holds. Goes over gloo, on the CPU, whatever
    connects the devices.

    Returns:
        On process 0 the parts, elsewhere None. Without other processes, the one part.
    """
    if not _connected():
        return [part]
    parts: list[Any] | None = None
    if dist.get_rank() == 0:
        parts = [None] * dist.get_world_size()
    dist.gather_object(part, parts, dst=0, group=_gloo())
    return parts


def from_first(value: T) -> T:
    """Process 0's object on every process; each has to call it."""
    if not _connected():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=_gloo())
    return values[0]


def _connected() -> bool:
    return dist.is_available() and dist.is_initialized()


def _gloo() -> Any:
    """All processes over gloo; None: the default group is that."""
    return None if dist.get_backend() == "gloo" else _beside(dist.group.WORLD)


@lru_cache(maxsize=1)
def _beside(group: Any) -> Any:
    """A gloo group beside the default one, made once: making it needs all processes."""
    return dist.new_group(backend="gloo")
