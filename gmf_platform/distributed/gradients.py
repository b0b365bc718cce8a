"""Gradients of a step as this process holds them, whatever the strategy."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gmf_platform.distributed.strategies import FSDP, ZeRO

__all__ = [
    "are_finite",
    "average_over_processes",
    "discard_gradients",
    "gradients_by_name",
    "local",
    "local_gradients",
    "loss_scale",
    "non_finite_parameters",
    "parameters_by_name",
    "sums_over_shards",
]

_BUCKET = 25 * 2**20
"""Bytes that are sent at once: DDP's default."""


def local_gradients(trainer: Trainer) -> list[Tensor]:
    """What this process holds of the step's gradients, before the optimiser steps.

    Whole and averaged ones under DDP, shards of them under FSDP and ZeRO.
    """
    match trainer.strategy:
        case ZeRO():
            return list(_partitions(_zero_optimizer(trainer)))
        case _:
            # The optimiser's lists: to find a module's parameters takes milliseconds.
            groups = (group for each in trainer.optimizers for group in each.param_groups)
            held = (p.grad for group in groups for p in group["params"])
            return [local(grad) for grad in held if grad is not None]


def gradients_by_name(trainer: Trainer) -> dict[str, Tensor]:
    """What this process holds of the gradients of the task's model, by its parameters' names.

    Under ZeRO by numbers: DeepSpeed holds them in flat buffers.
    """
    match trainer.strategy:
        case ZeRO():
            scale = loss_scale(trainer) or 1.0
            return {str(i): x.detach() / scale for i, x in enumerate(local_gradients(trainer))}
        case _:
            named = _model(trainer).named_parameters()
            return {name: local(p.grad).detach() for name, p in named if p.grad is not None}


def parameters_by_name(trainer: Trainer) -> dict[str, Tensor]:
    """What this process holds of the trained parameters of the task's model, by their names."""
    return {
        name: local(getattr(parameter, "ds_tensor", parameter)).detach()  # ZeRO-3's own shard
        for name, parameter in _model(trainer).named_parameters()
        if parameter.requires_grad
    }


def sums_over_shards(
    trainer: Trainer, *, of_gradients: Tensor, of_parameters: Tensor
) -> tuple[Tensor, Tensor]:
    """Add up what each process found on what it holds, by one collective if there are shards.

    Args:
        trainer: in training.
        of_gradients: (N,).
        of_parameters: (M,).
    """
    strategy, world_size = trainer.strategy, trainer.world_size
    if world_size == 1 or not isinstance(strategy, FSDP | ZeRO):
        return of_gradients, of_parameters
    if isinstance(strategy, ZeRO) and not strategy.zero_stage_3:
        of_parameters = of_parameters / world_size  # each process holds them all
    found = torch.cat([of_gradients, of_parameters])
    dist.all_reduce(found)
    return found[: len(of_gradients)], found[len(of_gradients) :]


def loss_scale(trainer: Trainer) -> float | None:
    """What float16's losses are multiplied by, and before they are unscaled the gradients too."""
    scaler: Any = None
    match trainer.strategy:
        case ZeRO():
            scaler = _zero_optimizer(trainer).torch_autocast_gradscaler
        case _:
            scaler = getattr(trainer.precision_plugin, "scaler", None)
    return None if scaler is None else float(scaler.get_scale())


def are_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Whether no element is infinite or no number, as a boolean on the tensors' device.

    The largest magnitudes decide: a sum of squares could be infinite by itself. If it is not, all
    is finite, and CPUs have it in a tenth of the time; a GPU would have to be waited for.
    """
    held = [tensor for tensor in tensors if tensor.numel()]
    if not held:
        return torch.tensor(True)
    if held[0].device.type == "cpu":
        all_finite = torch.stack(torch._foreach_norm(held)).isfinite().all()
        if all_finite:
            return all_finite
    return torch.stack(torch._foreach_norm(held, ord=float("inf"))).isfinite().all()


def non_finite_parameters(trainer: Trainer) -> list[str]:
    """Names of the parameters whose gradient is not finite, the last of the model first.

    That is about the order of the backward pass. Under FSDP those of this process's shards; under
    ZeRO all processes must call it.
    """
    named = reversed(list(trainer.lightning_module.named_parameters()))
    match trainer.strategy:
        case ZeRO():
            from deepspeed.utils import safe_get_full_grad

            gradients = ((name, safe_get_full_grad(p)) for name, p in named if p.requires_grad)
        case _:
            gradients = ((name, p.grad) for name, p in named)
    return [name for name, g in gradients if g is not None and not are_finite([local(g)])]


def discard_gradients(trainer: Trainer) -> None:
    """Make the optimiser's next step leave weights and moments as they are."""
    match trainer.strategy:
        case ZeRO():
            # DeepSpeed steps over what is not finite, on all processes if it is so on one.
            for partition in _partitions(_zero_optimizer(trainer)):
                partition.view(-1)[:1].fill_(float("nan"))
        case _:
            module: LightningModule = trainer.lightning_module
            for parameter in module.parameters():
                parameter.grad = None


@torch.no_grad()
def average_over_processes(gradients: Sequence[Tensor]) -> None:
    """Give all processes the mean of their tensors, in place, as DDP does: in buckets.

    Args:
        gradients: as many and of the same shapes on each.
    """
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return
    for bucket in _buckets(gradients):
        flat = torch.cat([tensor.flatten() for tensor in bucket])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        pieces = flat.split([tensor.numel() for tensor in bucket])
        views = [piece.view(x.shape) for piece, x in zip(pieces, bucket, strict=True)]
        torch._foreach_copy_(bucket, views)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one dtype, up to a bucket's size."""
    bucket: list[Tensor] = []
    held = 0
    for tensor in tensors:
        held += tensor.nbytes
        if bucket and (held > _BUCKET or bucket[0].dtype != tensor.dtype):
            yield bucket
            bucket, held = [], tensor.nbytes
        bucket.append(tensor)
    if bucket:
        yield bucket


def local(gradient: Tensor) -> Tensor:
    """This process's part of a gradient, in the same memory."""
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def _model(trainer: Trainer) -> nn.Module:
    return trainer.lightning_module.get_submodule("model")


def _zero_optimizer(trainer: Trainer) -> Any:
    """DeepSpeed's own, around the task's."""
    return trainer.strategy.model.optimizer  # type: ignore[union-attr]


def _partitions(optimizer: Any) -> Iterator[Tensor]:
    """The gradients that DeepSpeed is about to step with, after the last backward of a step."""
    for group in optimizer.averaged_gradients.values():
        yield from (tensor for tensor in group or () if tensor is not None)
    # With the moments on the CPU they are there already, as the gradients of flat parameters.
    for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"):
        flat = getattr(optimizer, name, ())
        yield from (parameter.grad for parameter in flat if parameter.grad is not None)
