"""A model in shards over processes, by FSDP2."""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

__all__ = ["broadcast_from_first", "shard", "sharding_units"]


def shard(
    model: nn.Module, mesh: DeviceMesh, *, dtype: torch.dtype, min_unit_parameters: int
) -> None:
    """Shard a model in place; one that is sharded already stays as it is.

    All processes go on with the first one's weights: FSDP2 by itself makes a patchwork of each
    one's own. Norms are a unit of their own that stays in float32.

    Args:
        model: the same in each process.
        mesh: one dimension, the processes.
        dtype: of gathered parameters; gradients are reduced in float32.
        min_unit_parameters: see `sharding_units`.
    """
    if isinstance(model, FSDPModule):
        return
    broadcast_from_first(model)
    model.to(memory_format=torch.contiguous_format)  # a shard is a piece of contiguous memory
    norms = [module for module in model.modules() if _is_norm(module)]
    if norms:
        as_they_are = MixedPrecisionPolicy(cast_forward_inputs=False)
        fully_shard(norms, mesh=mesh, mp_policy=as_they_are, reshard_after_forward=False)
    policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for unit in sharding_units(model, min_unit_parameters):
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    if norms:
        # torch 2.11 gathers such a unit by itself only if all of it ran in the pass before, but
        # validation leaves the auxiliary head out. Where it is gathered, nothing is done.
        model.register_forward_pre_hook(lambda *_: norms[0].unshard())  # type: ignore[operator]


def sharding_units(model: nn.Module, min_parameters: int) -> list[nn.Module]:
    """The parts that are gathered one at a time: items of module lists, the innermost of a size.

    Args:
        model: of any kind.
        min_parameters: elements that a unit holds at least.
    """
    items = {
        id(item): item
        for parent in model.modules()
        if isinstance(parent, nn.ModuleList | nn.Sequential)
        for item in parent
        if sum(p.numel() for p in item.parameters()) >= min_parameters
    }
    return [
        item
        for item in items.values()
        if not any(id(inner) in items for inner in item.modules() if inner is not item)
    ]


def broadcast_from_first(model: nn.Module) -> None:
    """Give each process the parameters and buffers of the first."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    with torch.no_grad():
        for tensor in _tensors(model):
            dist.broadcast(tensor, src=0)


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    yield from (p.data for p in model.parameters())
    yield from model.buffers()


def _is_norm(module: nn.Module) -> bool:
    kinds = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    return isinstance(module, kinds)
