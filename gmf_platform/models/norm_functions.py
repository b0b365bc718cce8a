"""What a batch norm computes, with its gradients; `gmf_platform.models.norm` says when."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = [
    "ByBatch",
    "NormHardswish",
    "NormsHardswish",
    "Statistics",
    "normalise",
    "statistics_of_all_ranks",
]


class Statistics(NamedTuple):
    """Of the values of one channel, for each channel; all (C,)."""

    mean: Tensor
    var: Tensor
    """Biased."""
    values: Tensor
    """How many, over all ranks."""


class ByBatch(NamedTuple):
    """How a norm takes the statistics of a batch."""

    running: tuple[Tensor, Tensor]
    """Mean and variance (C,), which move towards the batch's."""
    momentum: float
    eps: float


class NormHardswish(torch.autograd.Function):
    """``F.hardswish(F.batch_norm(...))`` by a batch's own statistics, keeping only the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, how: ByBatch) -> Tensor:
        """Of images or vectors (N, C, ...)."""
        normed, *statistics = _normed(x, weight, bias, how)
        ctx.save_for_backward(x, weight, bias, *statistics)
        return F.hardswish(normed, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Normalise again."""
        saved = ctx.saved_tensors
        return *_norm_hardswish_gradients(grad, saved, saved[-1] ** -2), None


class NormsHardswish(torch.autograd.Function):
    """`NormHardswish` of G norms that stand side by side, into one tensor."""

    @staticmethod
    def forward(ctx: Any, how: Sequence[ByBatch], *tensors: Tensor) -> Tensor:
        """Of tokens (n, ..., C), weights and biases, of all norms each; to (n, G, ..., C)."""
        first, saved = tensors[0], []
        stacked = first.new_empty(len(first), len(how), *first.shape[1:])
        for i, (x, weight, bias) in enumerate(_in_groups_of(3, tensors)):
            rows = x.view(-1, x.shape[-1])
            normed, *statistics = _normed(rows, weight, bias, how[i])
            torch.ops.aten.hardswish.out(normed.view(x.shape), out=stacked[:, i])
            saved += [rows, weight, bias, *statistics]
        ctx.save_for_backward(*saved)
        return stacked

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Normalise again."""
        saved = list(_in_groups_of(5, ctx.saved_tensors))
        variances = torch._foreach_pow([inv_std for *_, inv_std in saved], -2)
        gradients: list[Tensor] = []
        for of_one in zip(grad.unbind(1), saved, variances, strict=True):
            gradients += _norm_hardswish_gradients(*of_one)
        return None, *gradients


def _in_groups_of(number: int, tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    return zip(*[iter(tensors)] * number, strict=True)


def _normed(x: Tensor, weight: Tensor, bias: Tensor, how: ByBatch) -> tuple[Tensor, ...]:
    """The batch normalised, its mean and its inverse standard deviation."""
    normed: tuple[Tensor, ...] = torch.native_batch_norm(
        x, weight, bias, *how.running, True, how.momentum, how.eps
    )
    return normed


def _norm_hardswish_gradients(
    grad: Tensor, saved: tuple[Tensor, ...], var_and_eps: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of x, in the shape of the result's gradient, of weight and of bias."""
    x, weight, bias, mean, inv_std = saved
    normed = torch.batch_norm(
        *(x, weight, bias, mean, var_and_eps),
        *(False, 0.0, 0.0, torch.backends.cudnn.enabled),
    )
    of_norm = torch.ops.aten.hardswish_backward(grad, normed.view(grad.shape)).view(x.shape)
    grad_x, *others = torch.ops.aten.native_batch_norm_backward(
        of_norm, x, weight, None, None, mean, inv_std, True, 0.0, [True] * 3
    )
    return grad_x.view(grad.shape), *others


def normalise(
    x: Tensor,
    statistics: Statistics,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
    hardswish: bool,
) -> Tensor:
    """Batch norm by given statistics, which have gradients too; then a hardswish, if wanted."""
    mean, var, _ = statistics
    result: Tensor = _Normalise.apply(x, mean, var, weight, bias, eps, hardswish)
    return result


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        var: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        hardswish: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, mean, var, weight, bias)
        ctx.eps, ctx.hardswish = eps, hardswish
        normed = F.batch_norm(x, mean, var, weight, bias, eps=eps)
        return F.hardswish(normed, inplace=True) if hardswish else normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, var, weight, bias = ctx.saved_tensors
        if ctx.hardswish:
            normed = F.batch_norm(x, mean, var, weight, bias, eps=ctx.eps)
            grad = torch.ops.aten.hardswish_backward(grad, normed)
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, var, None, None, False, ctx.eps, [True] * 3
        )
        inv_std = torch.rsqrt(var + ctx.eps)
        grad_mean = -weight * inv_std * grad_bias
        grad_var = -0.5 * weight * inv_std.square() * grad_weight
        # Weight and bias get this rank's share: whoever averages gradients over ranks adds them.
        return grad_x, grad_mean, grad_var, grad_weight, grad_bias, None, None


def statistics_of_all_ranks(batches: Sequence[Tensor]) -> list[Statistics]:
    """Statistics of the values of all ranks, in one collective each way, on any backend.

    ``torch.nn.SyncBatchNorm`` runs on GPUs only, and takes two collectives for each norm. Forward,
    every rank's counts, means and sums of squared deviations are gathered and merged as in Chan,
    Golub, LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances"
    (1979), which never subtracts large numbers; backward, the statistics' gradients are summed.

    Args:
        batches: This rank's tensors (N, C, ...), of any sizes; there may be ranks with N = 0.
    """
    merged = _JointStatistics.apply(*batches)
    return [Statistics(*merged[i : i + 3]) for i in range(0, len(merged), 3)]


class _JointStatistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *batches: Tensor) -> tuple[Tensor, ...]:
        channels = [x.shape[1] for x in batches]
        local = torch.cat([_local_statistics(x) for x in batches], dim=1)
        mean, var, count = _merged(local)
        ctx.save_for_backward(mean, count, *batches)
        columns = [part.split(channels) for part in (mean, var, count)]
        ctx.mark_non_differentiable(*columns[2])
        return tuple(part for of_one in zip(*columns, strict=True) for part in of_one)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        mean, count, *batches = ctx.saved_tensors
        sums = torch.stack([torch.cat(gradients[0::3]), torch.cat(gradients[1::3])])
        dist.all_reduce(sums)
        # d mean / d x = 1 / count, d var / d x = 2 (x - mean) / count.
        slope = 2 * sums[1] / count
        offset = sums[0] / count - slope * mean
        pieces = _by_batch(batches, slope, offset)
        return tuple(
            torch.addcmul(offset, x.to(mean.dtype), slope).to(x.dtype)
            for x, slope, offset in pieces
        )


def _by_batch(batches: Sequence[Tensor], *rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Each batch with its part of values per channel, shaped to spread over it."""
    channels = [x.shape[1] for x in batches]
    for x, *parts in zip(batches, *(row.split(channels) for row in rows), strict=True):
        yield x, *(part.view(1, -1, *[1] * (x.ndim - 2)) for part in parts)


def _local_statistics(x: Tensor) -> Tensor:
    """Mean, sum of squared deviations and count of (N, C, ...), in float32 at least; (3, C)."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    count = x.numel() // x.shape[1]
    if count and not torch.compiler.is_compiling():
        # With running statistics, which are thrown away, it answers in their dtype.
        running = x.new_zeros(2, x.shape[1], dtype=dtype)
        mean, var = torch.batch_norm_update_stats(x, running[0], running[1], 0.0)
        return torch.stack([mean, var * count, torch.full_like(mean, count)])
    x = x.to(dtype)
    axes = [0, *range(2, x.ndim)]
    mean = x.sum(axes, keepdim=True) / max(count, 1)  # a rank may hold no value at all
    squares = (x - mean).square().sum(axes)
    return torch.stack([mean.flatten(), squares, torch.full_like(squares, count)])


def _merged(local: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and count of all ranks, from each one's local statistics (3, C)."""
    gathered = local.new_empty(dist.get_world_size(), *local.shape)
    dist.all_gather_into_tensor(gathered.view(-1), local.view(-1))
    means, squares, counts = gathered.unbind(1)
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count
    total = squares.sum(0) + (counts * (means - mean).square()).sum(0)
    return mean, total / count, count
