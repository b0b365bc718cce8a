"""The one batch norm of the platform: its statistics, their synchronisation and their access."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from gmf_platform.errors import UserError
from gmf_platform.models.norm_functions import (
    ByBatch,
    NormHardswish,
    NormsHardswish,
    Statistics,
    normalise,
    statistics_of_all_ranks,
)
from gmf_platform.models.token_ops import Epilogue, linear, product, without_autocast

__all__ = [
    "BatchNorm",
    "BatchTooSmallError",
    "LayerNorm",
    "NormMode",
    "average_statistics",
    "norms_with_hardswish",
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

    def forward(
        self,
        x: Tensor,
        statistics: Statistics | None = None,
        *,
        weight_before: Tensor | None = None,
        hardswish: bool = False,
    ) -> Tensor:
        """Normalise.

        Args:
            x: Images or vectors (N, C, ...), in any memory format.
            statistics: Of ``x`` on all ranks, if they are there already.
            weight_before: Weights (C, inputs) of a linear layer between vectors ``x`` (N, inputs)
                and this norm: in inference the two become one.
            hardswish: Whether a hardswish follows, which is then repeated in the backward pass.

        Returns:
            A tensor of the shape and dtype of ``x``, or of what the linear layer gives.

        Raises:
            BatchTooSmallError: In training, if batch statistics are to be taken of a single value
                per channel.
        """
        fixed = self.sums is None and (not self.training or self.mode == "frozen")
        if weight_before is not None:
            if fixed and not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
                return self._with_product(x, weight_before, "hardswish" if hardswish else "none")
            x = linear(x, weight_before)
        weight, bias = self._affine()
        if fixed:
            mean, var, _ = self._running()
            y = F.batch_norm(x, mean, var, weight, bias, eps=self.eps)
            return F.hardswish(y, inplace=not torch.is_grad_enabled()) if hardswish else y
        if self.synchronises:
            statistics = statistics or statistics_of_all_ranks([x])[0]
            self._track(*statistics)
            return normalise(x, statistics, weight, bias, eps=self.eps, hardswish=hardswish)

        if self.sums is not None:
            self._refuse_single_values(x)
            y = self._estimate(x, weight, bias, self.sums)
            return F.hardswish(y) if hardswish else y
        how = self._by_batch(x)
        _count_batch([self])
        if hardswish and not torch.compiler.is_compiling():
            return NormHardswish.apply(x, weight, bias, how)
        y = F.batch_norm(x, *how.running, weight, bias, True, how.momentum, how.eps)
        return F.hardswish(y) if hardswish else y

    def _by_batch(self, x: Tensor) -> ByBatch:
        """How to take the statistics of this rank's batch (N, C, ...)."""
        self._refuse_single_values(x)
        mean, var, _ = self._running()
        if self.keeps_statistics:
            # Copies, not None: a repeated forward must save as many tensors as the first.
            mean, var = mean.clone(), var.clone()
        return ByBatch((mean, var), self.momentum, self.eps)

    def _running(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and count of the set in use."""
        if not self.used_statistics:
            return self.running_mean, self.running_var, self.num_batches_tracked
        mean, var, batches = (
            getattr(self, f"{kind}_{self.used_statistics}") for kind in _STATISTICS
        )
        return mean, var, batches

    def _affine(self) -> tuple[Tensor, Tensor]:
        """Weight and bias."""
        # Mixed-precision sharding casts parameters and leaves buffers alone.
        dtype = self.running_mean.dtype
        return self.weight.to(dtype), self.bias.to(dtype)

    def _with_product(self, x: Tensor, before: Tensor, epilogue: Epilogue) -> Tensor:
        """One product in place of the one before and a norm by running statistics."""
        (mean, var, _), (weight, bias) = self._running(), self._affine()
        scale = weight * torch.rsqrt(var + self.eps)
        folded, shift = before * scale[:, None], bias - mean * scale
        return product(x, folded.to(x.dtype), shift.to(x.dtype), epilogue)

    @torch.no_grad()
    def _estimate(self, x: Tensor, weight: Tensor, bias: Tensor, sums: Tensor) -> Tensor:
        """Normalise a batch by its own statistics, and add these to the sums."""
        mean, var = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        y = F.batch_norm(x, mean, var, weight, bias, True, 1.0, self.eps)
        mean, var = mean.double(), var.double()
        sums += torch.stack([mean, var + mean.square(), torch.ones_like(mean)])
        return y

    def forward_tokens(
        self,
        x: Tensor,
        statistics: Statistics | None = None,
        *,
        weight_before: Tensor | None = None,
        hardswish: bool = False,
    ) -> Tensor:
        """Normalise channels-last tokens (..., C); as `forward`, without moving memory."""
        y = self(_rows(x), statistics, weight_before=weight_before, hardswish=hardswish)
        return y.view(*x.shape[:-1], self.num_features)

    @property
    def synchronises(self) -> bool:
        """Whether the next training batch is normalised by statistics of all ranks."""
        by_batch = self.training and self.sums is None
        return by_batch and self.mode == "sync" and _world_size() > 1

    @property
    def takes_own_batch(self) -> bool:
        """Whether the next batch is normalised by the statistics of this rank's part of it."""
        by_batch = self.training and self.sums is None and self.mode != "frozen"
        return by_batch and not self.synchronises

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


class LayerNorm(nn.LayerNorm):
    """Layer norm in the dtype of its input, under autocast too, which on a GPU asks for float32.

    Mean and variance are of float32 inside the kernel either way; float32 outside of it would be
    memory and casts alone, since a product in the lower precision follows.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of a tensor."""
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        with without_autocast(x.device.type):
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


def norms_with_hardswish(
    norms: Sequence[BatchNorm], tokens: Sequence[Tensor], weights_before: Sequence[Tensor | None]
) -> Sequence[Tensor]:
    """Norms that stand side by side, each with a hardswish behind it.

    Norms that synchronise take one collective together.

    Args:
        norms: The G norms.
        tokens: The channels-last tokens (n, ..., C) of each.
        weights_before: Weights (C, C) of a linear layer between tokens and norm, or None.

    Returns:
        The results in order, those of g norms in a tensor (n, g, ..., C): all in one, but for
        inference on a CPU, whose caches would have to be left for that.
    """
    if any(norm.training for norm in norms):  # then none is folded into the product before it
        before = zip(tokens, weights_before, strict=True)
        tokens = [x if weight is None else linear(x, weight) for x, weight in before]
        weights_before = [None] * len(tokens)
    if not torch.compiler.is_compiling() and all(norm.takes_own_batch for norm in norms):
        how = [norm._by_batch(_rows(x)) for norm, x in zip(norms, tokens, strict=True)]
        _count_batch(norms)
        of_norms = ((x, *norm._affine()) for norm, x in zip(norms, tokens, strict=True))
        return [NormsHardswish.apply(how, *chain.from_iterable(of_norms))]
    rows = [_rows(x) for norm, x in zip(norms, tokens, strict=True) if norm.synchronises]
    made = iter(statistics_of_all_ranks(rows) if rows else ())
    each = [
        norm.forward_tokens(
            x, next(made) if norm.synchronises else None, weight_before=before, hardswish=True
        )
        for norm, x, before in zip(norms, tokens, weights_before, strict=True)
    ]
    apart = each[0].device.type == "cpu" and not torch.is_grad_enabled()
    if apart and not torch.compiler.is_compiling():
        return [x.unsqueeze(1) for x in each]
    return [torch.stack(each, dim=1)]


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


def _count_batch(norms: Sequence[BatchNorm]) -> None:
    counts = [norm._running()[2] for norm in norms if not norm.keeps_statistics]
    if counts:
        torch._foreach_add_(counts, 1)  # one kernel on a GPU


def _batch_norms(module: nn.Module) -> Iterator[BatchNorm]:
    return (part for part in module.modules() if isinstance(part, BatchNorm))


def _rows(tokens: Tensor) -> Tensor:
    return tokens.reshape(-1, tokens.shape[-1])


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
