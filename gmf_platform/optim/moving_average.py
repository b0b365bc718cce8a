"""A moving average of weights, kept where the weights are: whole, or each process its shard."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from gmf_platform.models.norm import average_statistics

__all__ = ["AveragedWeights"]

# decay = 1 - (1 + updates) ** -power while that is the smaller: timm's ModelEmaV3, after
# K. Crowson's k-diffusion, whose advice 2/3 is for.
_WARMUP_POWER = 2 / 3


class AveragedWeights:
    """Exponential moving average of the tensors of a module's state dict.

    ``average = decay * average + (1 - decay) * weights`` after each optimiser step, in float32 at
    least; the first update takes the weights as they are. All floating-point tensors are averaged,
    the running statistics of norms too, which thus belong to the averaged weights; counts are
    copied. All of it as in timm's ModelEmaV3 (timm/utils/model_ema.py).

    An average is an affair of each element alone. With parameters that are DTensors, as
    ``fully_shard`` makes them, every process averages its own shard and nothing is sent.

    Args:
        decay: See above, below 1.
        warmup: Begin with a smaller decay that grows with the number of updates.

    Attributes:
        updates: Steps averaged so far. With 0 of them there is no average yet.
    """

    def __init__(self, decay: float, *, warmup: bool = False) -> None:
        self.decay, self.warmup = decay, warmup
        self.updates = 0
        self._averages: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the weights that an optimiser step has made."""
        state = _tensors(module)
        if self.updates == 0:
            self._averages = {name: _precise(tensor).clone() for name, tensor in state.items()}
        else:
            self._move_towards(state)
        self.updates += 1

    def _move_towards(self, state: Mapping[str, Tensor]) -> None:
        floats = [name for name, tensor in state.items() if tensor.is_floating_point()]
        averages = [_local(self._averages[name]) for name in floats]
        weights = [_local(_precise(state[name])) for name in floats]
        torch._foreach_lerp_(averages, weights, 1 - self._decay_now())
        for name in state.keys() - floats:
            self._averages[name].copy_(state[name])

    def _decay_now(self) -> float:
        if not self.warmup:
            return self.decay
        return min(self.decay, 1 - (1 + self.updates) ** -_WARMUP_POWER)

    def share_statistics(self, module: nn.Module) -> None:
        """Give all processes the mean of their averages' norm statistics.

        As `average_statistics` does with the weights'. Every process has to call it.

        Args:
            module: whose weights are averaged.
        """
        average_statistics(module, self._averages)

    @torch.no_grad()
    def put_into(self, module: nn.Module) -> None:
        """Give a module the averages; `take_out` undoes it."""
        state = _tensors(module)
        self._weights = {name: tensor.clone() for name, tensor in state.items()}
        _copy(self._averages, state)

    @torch.no_grad()
    def take_out(self, module: nn.Module) -> None:
        """Give a module back the weights that `put_into` replaced; without one, do nothing.

        What its buffers have become meanwhile belongs to the average, as norm statistics that are
        taken anew for it.
        """
        if self._weights:
            kept = dict(module.named_buffers())
            buffers = {name: tensor for name, tensor in kept.items() if name in self._averages}
            _copy(buffers, self._averages)
        _copy(self._weights, _tensors(module))
        self._weights = {}

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs, whole and on the CPU.

        Sharded tensors are gathered: every process has to call it.
        """
        return {"updates": self.updates, "state_dict": _all_whole(self._averages)}

    def load_state_dict(self, saved: Mapping[str, Any], module: nn.Module) -> None:
        """Go on from what `state_dict` gave, on the device and in the shards of ``module``."""
        self.updates = saved["updates"]
        averages: Mapping[str, Tensor] = saved["state_dict"]
        state = _tensors(module)
        self._averages = {name: _placed(averages[name], state[name]) for name in state}


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """The module's tensors, to be read or written; sharded ones as shards, also under FSDP2."""
    return {name: t for name, t in module.state_dict().items() if isinstance(t, Tensor)}


def _precise(tensor: Tensor) -> Tensor:
    """In float32 at least: lower precision cannot hold the small steps of an average."""
    if not tensor.is_floating_point():
        return tensor
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _all_whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()
        for name, tensor in tensors.items()
    }


def _placed(whole: Tensor, like: Tensor) -> Tensor:
    """A copy of a whole tensor where, and in the shards in which, another one is."""
    copy = whole.to(like.device, copy=True)
    if not isinstance(like, DTensor):
        return copy
    # Every process has read the file: each keeps its part, and none sends anything.
    return distribute_tensor(copy, like.device_mesh, like.placements, src_data_rank=None)


def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    if source:
        names = list(source)
        torch._foreach_copy_([_local(target[n]) for n in names], [_local(source[n]) for n in names])
