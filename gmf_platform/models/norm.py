"""The one batch norm of the platform: its statistics, their synchronisation and their access."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from gmf_platform.errors import UserError
from gmf_platform.models.norm_functions import (
    NormHardswish,
    Statistics,
    normalise,
    statistics_of_all_ranks,
)
from gmf_platform.models.token_ops import Epilogue, linear, product

__all__ = [
    "BatchNorm",
    "BatchTooSmallError",
    "NormMode",
    "average_statistics",
    "joint_statistics",
    "set_norm_mode",
    "statistics_kept",
]

NormMode = Literal["sync", "train", "frozen"]


class BatchTooSmallError(UserError):
    """A training batch holds one value per channel, so it has no variance to normalise by."""


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over every axis but the channels, for images and for channels-last tokens.

    The state dict has the keys of ``nn.BatchNorm2d``. Statistics are computed in float32 at least,
    whatever the input's dtype. ``mode`` says whose statistics normalise a training batch:

    - ``"sync"``: those of the batches of all ranks. With one rank, the same as ``"train"``.
    - ``"train"``: those of this rank's batch.
    - ``"frozen"``: the running ones, which then stay as they are. Weight and bias still train.

    Outside training the running statistics are used in every mode.

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
            statistics: What `joint_statistics` gave for this norm and ``x``. Not needed: it saves
                collectives where norms stand side by side.
            weight_before: Weights (C, inputs) of a linear layer between vectors ``x`` (N, inputs)
                and this norm: in inference the two become one.
            hardswish: Whether a hardswish follows, which is then repeated in the backward pass.

        Returns:
            A tensor of the shape and dtype of ``x``, or of what the linear layer gives.

        Raises:
            BatchTooSmallError: In training, if batch statistics are to be taken of a single value
                per channel.
        """
        fixed = not self.training or self.mode == "frozen"
        if weight_before is not None:
            if fixed and not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
                return self._with_product(x, weight_before, "hardswish" if hardswish else "none")
            x = linear(x, weight_before)
        if fixed:
            y = F.batch_norm(x, *self._statistics_and_affine(), eps=self.eps)
            return F.hardswish(y, inplace=not torch.is_grad_enabled()) if hardswish else y
        if self.synchronises:
            statistics = statistics or statistics_of_all_ranks([x])[0]
            self._track(*statistics)
            _, _, *affine = self._statistics_and_affine()
            return normalise(x, statistics, *affine, eps=self.eps, hardswish=hardswish)
        return self._by_own_statistics(x, hardswish)

    def _statistics_and_affine(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Running mean and variance, weight and bias."""
        mean, var = self.running_mean, self.running_var
        # Mixed-precision sharding casts parameters and leaves buffers alone.
        return mean, var, self.weight.to(mean.dtype), self.bias.to(mean.dtype)

    def _with_product(self, x: Tensor, before: Tensor, epilogue: Epilogue) -> Tensor:
        """One product in place of the one before and a norm by running statistics."""
        mean, var, weight, bias = self._statistics_and_affine()
        scale = weight * torch.rsqrt(var + self.eps)
        folded, shift = before * scale[:, None], bias - mean * scale
        return product(x, folded.to(x.dtype), shift.to(x.dtype), epilogue)

    def _by_own_statistics(self, x: Tensor, hardswish: bool) -> Tensor:
        self._refuse_single_values(x)
        mean, var, weight, bias = self._statistics_and_affine()
        if self.keeps_statistics:
            # Copies, not None: a repeated forward must save as many tensors as the first.
            mean, var = mean.clone(), var.clone()
        else:
            self.num_batches_tracked.add_(1)
        if hardswish and not torch.compiler.is_compiling():
            return NormHardswish.apply(x, weight, bias, (mean, var), self.momentum, self.eps)
        y = F.batch_norm(x, mean, var, weight, bias, True, self.momentum, self.eps)
        return F.hardswish(y) if hardswish else y

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
        return y.view(*x.shape[:-1], -1)

    @property
    def synchronises(self) -> bool:
        """Whether the next training batch is normalised by statistics of all ranks."""
        return self.training and self.mode == "sync" and _world_size() > 1

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
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)


def joint_statistics(
    norms: Sequence[BatchNorm], tokens: Sequence[Tensor]
) -> list[Statistics | None]:
    """Statistics for norms that stand side by side, in one collective for all.

    Args:
        norms: The norms, which are to be called next, each with its own.
        tokens: The channels-last tokens (..., C) of each.

    Returns:
        What each norm takes; None for one that does not synchronise.
    """
    rows = [_rows(x) for norm, x in zip(norms, tokens, strict=True) if norm.synchronises]
    made = iter(statistics_of_all_ranks(rows) if rows else ())
    return [next(made) if norm.synchronises else None for norm in norms]


def set_norm_mode(module: nn.Module, mode: NormMode) -> None:
    """Set the mode of every `BatchNorm` inside ``module`` (itself included)."""
    for norm in _batch_norms(module):
        norm.mode = mode


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
def average_statistics(model: nn.Module) -> None:
    """Give all processes the mean of their norms' running statistics.

    Norms in mode ``train`` see a process's own images; without this a checkpoint would hold the
    statistics of whichever process wrote it. Those in mode ``sync`` agree already. One collective.

    Args:
        model: of any kind; with one process nothing is done.
    """
    if _world_size() == 1:
        return
    norms = [norm for norm in _batch_norms(model) if norm.mode == "train"]
    if not norms:
        return
    statistics = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
    flat = torch.cat([buffer.flatten() for buffer in statistics])
    dist.all_reduce(flat)
    flat /= _world_size()
    pieces = flat.split([buffer.numel() for buffer in statistics])
    for buffer, piece in zip(statistics, pieces, strict=True):
        buffer.copy_(piece.view_as(buffer))


def _batch_norms(module: nn.Module) -> Iterator[BatchNorm]:
    return (part for part in module.modules() if isinstance(part, BatchNorm))


def _rows(tokens: Tensor) -> Tensor:
    return tokens.reshape(-1, tokens.shape[-1])


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
