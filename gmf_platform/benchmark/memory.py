"""Memory of a training step: what lives between forward and backward, and at the fullest moment."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["LiveBytes", "StepMemory", "step_memory"]


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step beyond those of weights and input.

    Attributes:
        held: live between forward and backward.
        peak: live at the fullest moment, gradients included.
    """

    held: int
    peak: int


class LiveBytes(TorchDispatchMode):
    """Adds up the storages that operations make, until nothing refers to them any more.

    It sees tensors that PyTorch hands out: not the scratch memory inside an operation, and nothing
    of compiled code.

    Attributes:
        now: bytes alive.
        peak: the most that ``now`` has been.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if _is_tensor(x)}
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if _is_tensor(x):
                self._count(x.untyped_storage(), given)
        return result

    def _count(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key = storage._cdata
        if key in self._sizes or key in given:  # a view of what was there before
            return
        self._sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def _is_tensor(x: object) -> bool:
    return isinstance(x, Tensor)


def step_memory(
    forward: Callable[[], Tensor], *, device: torch.device, compiled: bool = False
) -> StepMemory | None:
    """Run a step forward and backward, and look at its memory.

    On a GPU by the allocator's own counters; on a CPU, which has none, by adding up tensors
    (LiveBytes).

    Args:
        forward: gives the loss; parameters have no gradients yet.
        device: that it runs on.
        compiled: by torch.compile.

    Returns:
        None for compiled code on a CPU, into which nobody sees.
    """
    if device.type == "cuda":
        return _on_gpu(forward, device)
    return None if compiled else _on_cpu(forward)


def _on_gpu(forward: Callable[[], Tensor], device: torch.device) -> StepMemory:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    loss = forward()
    held = torch.cuda.memory_allocated(device) - before
    loss.backward()
    torch.cuda.synchronize(device)
    return StepMemory(held, torch.cuda.max_memory_allocated(device) - before)


def _on_cpu(forward: Callable[[], Tensor]) -> StepMemory:
    with LiveBytes() as live:
        loss = forward()
        held = live.now
        loss.backward()
    return StepMemory(held, live.peak)
