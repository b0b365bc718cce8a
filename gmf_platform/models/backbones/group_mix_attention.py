"""Group-Mix Attention: attention between groups of tokens of several sizes.

GroupMixFormer, Ge et al., arXiv 2311.15157, section 3. Shapes in comments use

    B images, H x W tokens, C channels = G segments of S, h heads a segment of D = S / h channels,

where G = 5 as published. Tokens are channels-last (B, H, W, C): the memory of a channels-last
image, so that convolutions and matrix products take the same tensor and nothing is transposed.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmf_platform.errors import UserError
from gmf_platform.models.backbones.factorised_attention import Positions, attend
from gmf_platform.models.norm import BatchNorm, LayerNorm, norms_with_hardswish
from gmf_platform.models.token_ops import depthwise, linear

__all__ = ["Aggregated", "GroupMixAttention", "SeparableConv"]

Aggregated = Literal["qkv", "qk", "qv", "kv", "q", "k", "v", "none"]
"""Which of Q, K and V are turned into group proxies."""


class GroupMixAttention(nn.Module):
    """Multi-head attention whose heads see single tokens and groups of 3x3, 5x5 and 7x7 tokens.

    With Q, K, V the aggregated projections of one head (N tokens, D channels) it computes

        scale * Q (softmax(K)^T V) + Q * depthwise(V),

    where the softmax runs over the N tokens, so that time and memory grow linearly with N
    ("factorised attention"; the second term encodes relative positions; both from CoaT, Xu et al.,
    arXiv 2104.06399). The last segment of channels mixes neighbours by a convolution instead.

    All arguments but the first are as published; others are for ablations.

    Args:
        dim: Channels C, a multiple of ``5 * num_heads / 4``.
        num_heads: Heads over the four attending segments, a multiple of 8.
        kernel_sizes: Tokens along a side of the groups that the attending segments behind the
            first one see, odd; 1 sees single tokens, as the first does. Their number may be
            another one, if the heads can be dealt evenly to the segments.
        local_branch: Whether there is a segment that is only convolved; if not, all attend.
        aggregated: Which of Q, K and V become group proxies, with norm and activation; the others
            are taken as they are projected.
        relative_positions: Whether there is the second term.

    Raises:
        UserError: If the channels cannot be dealt to segments and heads, or a kernel is even.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        *,
        kernel_sizes: Sequence[int] = (3, 5, 7),
        local_branch: bool = True,
        aggregated: Aggregated = "qkv",
        relative_positions: bool = True,
    ) -> None:
        super().__init__()
        attending = 1 + len(kernel_sizes)
        self.segments = attending + local_branch
        _check_split(dim, num_heads, attending, self.segments)
        segment = dim // self.segments
        # The authors scale by the width a head would have without segments.
        self.scale = (dim // num_heads) ** -0.5
        self.same_head: Tensor
        same_head = _same_head(segment, segment * attending // num_heads)
        self.register_buffer("same_head", same_head, persistent=False)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.aggregator = Aggregator(segment, kernel_sizes, aggregated, local_branch)
        self.crpe = ConvRelativePosition(segment, attending) if relative_positions else None
        self.proj = nn.Linear(dim, dim)

    def borrowed_parameters(self) -> Iterator[Tensor]:
        """Parameters of modules inside, which `forward` reads without calling those modules."""
        for module in (self.qkv, self.crpe, self.proj):
            if module is not None:
                yield from module.parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens (B, H, W, C) into tokens of the same shape."""
        qkv = linear(x, self.qkv.weight, self.qkv.bias)
        segments = qkv.unflatten(-1, (3, self.segments, -1)).unbind(-2)
        groups, local = self.aggregator(segments)
        mask = self.same_head.to(qkv.dtype) * self.scale
        positions = self.crpe.per_segment(qkv.dtype) if self.crpe else []
        mixed: list[Tensor] = []
        for some in groups:  # (3, n, B, H, W, S) of n segments
            of_some = positions[len(mixed) : len(mixed) + some.shape[1]]
            mixed += attend(some, mask, of_some).unbind(0)
        return linear(torch.cat([*mixed, *local], -1), self.proj.weight, self.proj.bias)


def _same_head(segment: int, head_dim: int) -> Tensor:
    """Whether two channels of a segment belong to one head; (S, S).

    One product for all heads of a segment reads the tokens where they lie; what crosses heads is
    dropped then.
    """
    heads = torch.arange(segment) // head_dim
    return heads == heads[:, None]


def _check_split(dim: int, num_heads: int, attending: int, segments: int) -> None:
    heads = num_heads // attending  # of a segment
    if num_heads % 8 or num_heads % attending or dim % (segments * heads):
        raise UserError(
            f"Group-Mix Attention cannot split {dim} channels over {num_heads} heads, {attending} "
            f"attending segments and {segments - attending} convolved ones. Make the heads a "
            f"multiple of 8 and of {attending} (the kernel sizes and one), and the channels a "
            f"multiple of {segments} times the heads of a segment (of 10 for the 8 heads and 5 "
            "segments of GroupMixFormer)."
        )


class Aggregator(nn.Module):
    """Turns segments of Q, K and V into group proxies, by kernels shared among the three.

    Because they are shared, Q, K and V are also normalised by joint statistics.
    """

    def __init__(
        self, segment: int, kernel_sizes: Sequence[int], aggregated: Aggregated, local_branch: bool
    ) -> None:
        super().__init__()
        if any(size < 1 or size % 2 == 0 for size in kernel_sizes):
            raise UserError(
                f"Group-Mix Attention got kernel_sizes {tuple(kernel_sizes)}: each has to be odd, "
                "so that a group has its token in the middle; 1 for none"
            )
        self.kernel_sizes = (1, *kernel_sizes)
        self.places = ["qkv".index(letter) for letter in aggregated if aggregated != "none"]
        for i, size in enumerate(self.kernel_sizes if self.places else ()):
            if size > 1:
                self.add_module(f"agg{i}", SeparableConv(segment, segment, kernel_size=size))
            self.add_module(f"norm{i}", BatchNorm(segment))
        self.agg0 = LocalMix(segment) if local_branch else None

    def borrowed_parameters(self) -> Iterator[Tensor]:
        """See `GroupMixAttention.borrowed_parameters`."""
        for module in self.children():
            if isinstance(module, SeparableConv | BatchNorm):
                yield from module.parameters()

    def forward(self, segments: Sequence[Tensor]) -> tuple[Sequence[Tensor], list[Tensor]]:
        """Aggregate segments of Q, K and V, each (B, H, W, 3, S).

        Returns:
            Q, K and V (3, n, B, H, W, S) of the attending segments, n of them in one tensor; and
            the locally mixed segment (B, H, W, S), if there is one.
        """
        attending = segments[: len(self.kernel_sizes)]
        local = [] if self.agg0 is None else [self.agg0(segments[-1])]
        tokens = [segment.movedim(3, 0) for segment in attending]  # each (3, B, H, W, S)
        if len(self.places) == 3:
            return self.aggregate(tokens), local
        kinds = list(torch.stack(tokens, 1).unbind(0))  # Q, K and V, each (G, B, H, W, S)
        if self.places:
            proxies = torch.cat([*self.aggregate([some[self.places] for some in tokens])], 1)
            for place, proxy in zip(self.places, proxies, strict=True):
                kinds[place] = proxy
        return [torch.stack(kinds)], local

    def aggregate(self, tokens: Sequence[Tensor]) -> Sequence[Tensor]:
        """Group proxies of each attending segment's tokens (n, B, H, W, S), as of the norms."""
        norms = [getattr(self, f"norm{i}") for i in range(len(tokens))]
        gathered = [self.gather(i, some.contiguous()) for i, some in enumerate(tokens)]
        return norms_with_hardswish(norms, *zip(*gathered, strict=True))

    def gather(self, number: int, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Gather the neighbours of tokens (n, B, H, W, S), as many as the segment's kernel says.

        Returns:
            The tokens gathered by a depthwise convolution, and the weights (S, S) of the pointwise
            one that is to follow; if the segment has them.
        """
        if self.kernel_sizes[number] == 1:
            return tokens, None
        convolution = getattr(self, f"agg{number}")
        return convolution.gather(tokens.flatten(0, 1)).view(tokens.shape), convolution.weight


class LocalMix(nn.Module):
    """The segment without attention: Q, K and V together, mixed by a 3x3 convolution."""

    def __init__(self, segment: int) -> None:
        super().__init__()
        self.conv = SeparableConv(3 * segment, segment, kernel_size=3)
        self.norm = LayerNorm(segment)

    def forward(self, qkv: Tensor) -> Tensor:
        """Map Q, K, V (B, H, W, 3, S) to tokens (B, H, W, S)."""
        return F.hardswish(self.norm(self.conv(qkv.flatten(3))))


class ConvRelativePosition(nn.Module):
    """Depthwise kernels over V: 2, 3 and 3 eighths of the channels have windows of 3, 5 and 7."""

    def __init__(self, segment: int, attending: int) -> None:
        super().__init__()
        self.segment, self.attending = segment, attending
        eighth = segment * attending // 8
        self.conv_list = nn.ModuleList(
            nn.Conv2d(n * eighth, n * eighth, window, padding=window // 2, groups=n * eighth)
            for n, window in ((2, 3), (3, 5), (3, 7))
        )

    def per_segment(self, dtype: torch.dtype) -> Positions:
        """Kernel (S, 1, k, k) and bias (S,) of each of the attending segments, in a dtype.

        As published the third segment has windows of both 5 and 7: where sizes meet in a segment,
        the smaller kernels get a rim of zeros.
        """
        parts: list[list[Tensor]] = [[] for _ in range(self.attending)]
        channel = 0
        for conv in self.conv_list:
            kernels = conv.get_parameter("weight").to(dtype)
            for piece in kernels.split(self._up_to_segments(channel, len(kernels))):
                parts[channel // self.segment].append(piece)
                channel += len(piece)
        biases = torch.cat([conv.get_parameter("bias") for conv in self.conv_list]).to(dtype)
        of_segments = biases.view(self.attending, -1).unbind(0)
        return list(zip(map(_together, parts), of_segments, strict=True))

    def _up_to_segments(self, first: int, channels: int) -> list[int]:
        """How many of the channels from a first one on belong to each segment they reach."""
        borders = range(first - first % self.segment, first + channels + self.segment, self.segment)
        cuts = [min(max(border, first), first + channels) for border in borders]
        return [end - begin for begin, end in pairwise(cuts) if end > begin]


def _together(kernels: Sequence[Tensor]) -> Tensor:
    """Kernels (n, 1, k, k) as one (N, 1, K, K), K the largest."""
    if len(kernels) == 1:
        return kernels[0]
    window = max(kernel.shape[-1] for kernel in kernels)
    return torch.cat([_with_rim(kernel, window) for kernel in kernels])


def _with_rim(kernel: Tensor, window: int) -> Tensor:
    rim = (window - kernel.shape[-1]) // 2
    return F.pad(kernel, (rim,) * 4) if rim else kernel


class SeparableConv(nn.Module):
    """A depthwise convolution and a pointwise one, without bias, for channels-last tokens."""

    def __init__(self, inputs: int, outputs: int, *, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv1 = nn.Conv2d(
            inputs, inputs, kernel_size, stride, padding, groups=inputs, bias=False
        )
        self.pointwise_conv = nn.Conv2d(inputs, outputs, 1, bias=False)

    def borrowed_parameters(self) -> Iterator[Tensor]:
        """See `GroupMixAttention.borrowed_parameters`."""
        return self.parameters()

    @property
    def weight(self) -> Tensor:
        """Weights (outputs, inputs) of the pointwise convolution."""
        return self.pointwise_conv.weight.flatten(1)

    def gather(self, x: Tensor) -> Tensor:
        """The depthwise convolution alone, of tokens (B, H, W, inputs)."""
        return depthwise(x, self.conv1.weight, stride=self.conv1.stride[0])

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, inputs) to (B, ceil(H / stride), ceil(W / stride), outputs)."""
        return linear(self.gather(x), self.weight)
