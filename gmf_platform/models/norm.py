"""The one batch norm of the platform: its statistics, their synchronisation and their access."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from gmf_platform.errors import UserError

__all__ = [
    "BatchNorm",
    "BatchTooSmallError",
    "NormMode",
    "average_statistics",
    "set_norm_mode",
    "split_statistics",
    "statistics_estimated",
    "statistics_kept",
    "take_split_statistics",
]

NormMode = Literal["sync", "train", "frozen"]

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class BatchTooSmallError(UserError):
    """A training batch holds one value per channel, so it has no variance to normalise by."""


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over every axis but the channels, for images and for channels-last tokens.

    The state dict has the keys of ``nn.BatchNorm2d``. Statistics are computed in float32 at least,
    whatever the input's dtype. ``mode`` says whose statistics normalise a training batch:

    - ``"sync"``: those of the batches of all ranks. With one rank, the same as ``"train"``.
    - ``"train"``: those of this rank's batch.
    - ``"frozen"``: the running ones, which then stay as they are. Weight and bias still train.

    Outside training the running statistics are used in every mode. There may be several sets of
    them, see `split_statistics`.

    Args:
        channels: Number of channels C.
        eps: Added to the variance.
        momentum: Weight of the new batch in the running statistics.
        mode: See above.
    """

    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self, channels: int, *, eps: float = 1e-5, momentum: float = 0.1, mode: NormMode = "sync"
    ) -> None:
        super().__init__(channels, eps, momentum)
        self.mode: NormMode = mode
        self.keeps_statistics = False
        self.used_statistics = ""
        self.sums: Tensor | None = None

    def extra_repr(self) -> str:
        """Add the mode to what ``print(model)`` shows."""
        return f"{super().extra_repr()}, mode={self.mode}"

    def forward(self, x: Tensor) -> Tensor:
        """Normalise.

        Args:
            x: Images or vectors (N, C, ...), in any memory format.

        Returns:
            A tensor of the shape and dtype of ``x``.

        Raises:
            BatchTooSmallError: In training, if batch statistics are to be taken of a single value
                per channel.
        """
        mean, var, batches = self._running()
        # Mixed-precision sharding casts parameters and leaves buffers alone.
        weight, bias = self.weight.to(mean.dtype), self.bias.to(mean.dtype)
        if self.sums is not None:
            return self._estimate(x, weight, bias, self.sums)
        if not self.training or self.mode == "frozen":
            return F.batch_norm(x, mean, var, weight, bias, False, 0.0, self.eps)
        if self.mode == "sync" and _world_size() > 1:
            y, *statistics = _SyncedNorm.apply(x, weight, bias, self.eps)
            self._track(*statistics)
            return y

        self._refuse_single_values(x)
        if self.keeps_statistics:
            # Copies, not None: a repeated forward must save as many tensors as the first.
            mean, var = mean.clone(), var.clone()
        else:
            batches.add_(1)
        return F.batch_norm(x, mean, var, weight, bias, True, self.momentum, self.eps)

    def _running(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and count of the set in use."""
        if not self.used_statistics:
            return self.running_mean, self.running_var, self.num_batches_tracked
        mean, var, batches = (
            getattr(self, f"{kind}_{self.used_statistics}") for kind in _STATISTICS
        )
        return mean, var, batches

    @torch.no_grad()
    def _estimate(self, x: Tensor, weight: Tensor, bias: Tensor, sums: Tensor) -> Tensor:
        """Normalise a batch by its own statistics, and add these to the sums."""
        self._refuse_single_values(x)
        mean, var = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        y = F.batch_norm(x, mean, var, weight, bias, True, 1.0, self.eps)
        mean, var = mean.double(), var.double()
        sums += torch.stack([mean, var + mean.square(), torch.ones_like(mean)])
        return y

    def forward_tokens(self, x: Tensor) -> Tensor:
        """Normalise channels-last tokens (..., C); as `forward`, without moving memory."""
        return self(x.reshape(-1, self.num_features)).view(x.shape)

    def _refuse_single_values(self, x: Tensor) -> None:
        if x.numel() == x.shape[1]:
            raise BatchTooSmallError(
                f"Batch norm over {self.num_features} channels was given one value per channel "
                f"(input {tuple(x.shape)}): the batch is too small for the norm. Use a larger "
                "batch per device, a larger crop, or, for norms of the backbone, `norm: frozen`."
            )

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Move the running statistics towards a batch of ``count`` values per channel."""
        if self.keeps_statistics:
            return
        unbiased = var * (count / (count - 1))
        running_mean, running_var, batches = self._running()
        batches.add_(1)
        running_mean.lerp_(mean.to(running_mean.dtype), self.momentum)
        running_var.lerp_(unbiased.to(running_var.dtype), self.momentum)


def set_norm_mode(module: nn.Module, mode: NormMode) -> None:
    """Set the mode of every `BatchNorm` inside ``module`` (itself included)."""
    for norm in _batch_norms(module):
        norm.mode = mode


def split_statistics(module: nn.Module, names: Iterable[str]) -> list[BatchNorm]:
    """Give every `BatchNorm` inside ``module`` running statistics for each of some names.

    Each set begins as the one there is, and is used while ``used_statistics`` is its name.

    Returns:
        The norms.
    """
    norms = list(_batch_norms(module))
    for norm in norms:
        for name in names:
            for kind in _STATISTICS:
                norm.register_buffer(f"{kind}_{name}", getattr(norm, kind).clone())
    return norms


def take_split_statistics(module: nn.Module, name: str, names: Iterable[str]) -> None:
    """Undo `split_statistics`: each `BatchNorm` inside ``module`` keeps the set of one name.

    Args:
        module: whose norms have a set for each of ``names``.
        name: of the set to keep.
        names: of all sets.
    """
    for norm in _batch_norms(module):
        norm.used_statistics = ""
        for kind in _STATISTICS:
            getattr(norm, kind).copy_(getattr(norm, f"{kind}_{name}"))
            for each in names:
                delattr(norm, f"{kind}_{each}")


@contextmanager
def statistics_estimated(module: nn.Module) -> Iterator[None]:
    """Take the running statistics of norms inside ``module`` anew, from the batches given to it.

    Inside, a batch is normalised by its own statistics, whatever the mode, in evaluation too;
    afterwards the running mean and variance are those of all batches together, and of all
    processes: Y. Wu, J. Johnson, Rethinking "Batch" in BatchNorm (arXiv 2105.07576), section 3.
    Batches count alike, and what their means differ by belongs to the variance. Frozen norms stay
    as they are.
    """
    norms = [norm for norm in _batch_norms(module) if norm.mode != "frozen"]
    for norm in norms:
        norm.sums = norm.running_mean.new_zeros(3, norm.num_features, dtype=torch.float64)
    try:
        yield
        _take_statistics(norms)
    finally:
        for norm in norms:
            norm.sums = None


@torch.no_grad()
def _take_statistics(norms: Iterable[BatchNorm]) -> None:
    """The running statistics from the sums of all processes."""
    norms = list(norms)
    sums = [norm.sums for norm in norms if norm.sums is not None]
    if not sums:
        return
    flat = torch.cat(sums, dim=1)
    if _world_size() > 1:
        dist.all_reduce(flat)
    for norm, (mean, square, count) in zip(
        norms, flat.split([x.shape[1] for x in sums], dim=1), strict=True
    ):
        mean, square = mean / count, square / count
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(square - mean.square())


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Leave the running statistics of every `BatchNorm` inside ``module`` as they are.

    Batches are still normalised by their own statistics. It is for a forward that repeats one
    already counted, as activation checkpointing does in the backward pass.
    """
    norms = [norm for norm in _batch_norms(module) if not norm.keeps_statistics]
    try:
        for norm in norms:
            norm.keeps_statistics = True
        yield
    finally:
        for norm in norms:
            norm.keeps_statistics = False


@torch.no_grad()
def average_statistics(model: nn.Module, state: Mapping[str, Tensor] | None = None) -> None:
    """Give all processes the mean of their norms' running statistics.

    Norms in mode ``train`` see a process's own images; without this a checkpoint would hold the
    statistics of whichever process wrote it. Those in mode ``sync`` agree already. One collective.

    Args:
        model: of any kind; with one process nothing is done.
        state: average the statistics in here, by their names in the model's state dict, instead of
            the model's own.
    """
    if _world_size() == 1:
        return
    norms = ((f"{n}." if n else "", m) for n, m in model.named_modules() if _is_apart(m))
    buffers = (f"{prefix}{name}" for prefix, norm in norms for name, _ in norm.named_buffers())
    names = [name for name in buffers if name.rpartition(".")[2].startswith("running_")]
    if not names:
        return
    statistics = [model.get_buffer(name) if state is None else state[name] for name in names]
    flat = torch.cat([buffer.flatten() for buffer in statistics])
    dist.all_reduce(flat)
    flat /= _world_size()
    pieces = flat.split([buffer.numel() for buffer in statistics])
    for buffer, piece in zip(statistics, pieces, strict=True):
        buffer.copy_(piece.view_as(buffer))


def _is_apart(module: nn.Module) -> bool:
    """Whether it is a norm whose statistics each process gathers by itself."""
    return isinstance(module, BatchNorm) and module.mode == "train"


def _batch_norms(module: nn.Module) -> Iterator[BatchNorm]:
    return (part for part in module.modules() if isinstance(part, BatchNorm))


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _SyncedNorm(torch.autograd.Function):
    """Batch norm by the statistics of the values of all ranks, on any backend.

    ``torch.nn.SyncBatchNorm`` runs on GPUs only. One collective each way: forward, every rank's
    count, mean and sum of squared deviations, merged as in Chan, Golub, LeVeque, "Updating
    Formulae and a Pairwise Algorithm for Computing Sample Variances" (1979), which never subtracts
    large numbers; backward, the two sums that the gradients of mean and variance need.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, var, count = _global_statistics(x)
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var, count)
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps), mean, var, count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, var, count = ctx.saved_tensors
        axes, shape = _axes_and_shape(x)
        inv_std = torch.rsqrt(var + ctx.eps)
        normed = (x.to(mean.dtype) - mean.view(shape)) * inv_std.view(shape)
        grad = grad.to(mean.dtype)
        grad_bias, grad_weight = grad.sum(axes), (grad * normed).sum(axes)

        sums = torch.stack([grad_bias, grad_weight])
        dist.all_reduce(sums)
        through_mean, through_std = (sums / count).view(2, *shape)
        grad_x = (weight * inv_std).view(shape) * (grad - through_mean - normed * through_std)
        # Weight and bias get this rank's share: whoever averages gradients over ranks adds them.
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), grad_bias.to(weight.dtype), None


def _global_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), biased variance (C,) and count () of the values of all ranks, per channel."""
    axes, shape = _axes_and_shape(x)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    count = x.numel() // x.shape[1]
    mean = x.sum(axes) / max(count, 1)  # a rank may hold no value at all
    squares = (x - mean.view(shape)).square().sum(axes)

    local = torch.cat([mean, squares, mean.new_tensor([count])])
    gathered = local.new_empty(_world_size() * len(local))
    dist.all_gather_into_tensor(gathered, local)
    ranks = gathered.view(-1, len(local))
    counts = ranks[:, -1:]
    means, all_squares = ranks[:, :-1].chunk(2, dim=1)

    total = counts.sum()
    mean = (counts * means).sum(0) / total
    squares = all_squares.sum(0) + (counts * (means - mean).square()).sum(0)
    return mean, squares / total, total


def _axes_and_shape(x: Tensor) -> tuple[list[int], list[int]]:
    """The axes of (N, C, ...) that are reduced, and the shape that spreads (C,) over it."""
    return [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
