"""Counts the collectives of a step."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_leaves

__all__ = ["Collectives"]

_FUNCTIONS = (
    "all_gather_into_tensor",
    "all_gather_object",
    "all_reduce",
    "barrier",
    "broadcast",
    "reduce_scatter_tensor",
)


@dataclass
class Collectives:
    """Counts what Python code asks of ``torch.distributed``; DDP's gradients are not among it.

    Attributes:
        calls: by function.
        nbytes: that a process puts in, by function.
    """

    calls: Counter[str] = field(default_factory=Counter)
    nbytes: Counter[str] = field(default_factory=Counter)

    def __truediv__(self, steps: int) -> dict[str, dict[str, float]]:
        """Calls and bytes of a step, by function."""
        return {
            name: {"calls": calls / steps, "bytes": self.nbytes[name] / steps}
            for name, calls in sorted(self.calls.items())
        }

    def clear(self) -> None:
        """Begin anew."""
        self.calls.clear()
        self.nbytes.clear()

    @contextmanager
    def counting(
        self, around: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function
    ) -> Iterator[None]:
        """Count, with each function put through ``around`` as well."""
        originals: Mapping[str, Any] = {name: getattr(dist, name) for name in _FUNCTIONS}
        try:
            for name, function in originals.items():
                setattr(dist, name, self._counted(name, around(function)))
            yield
        finally:
            for name, function in originals.items():
                setattr(dist, name, function)

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            self.calls[name] += 1
            self.nbytes[name] += min((x.numel() * x.element_size() for x in tensors), default=0)
            return function(*args, **kwargs)

        return call
