"""Group-Mix Attention: attention between groups of tokens of several sizes.

GroupMixFormer, Ge et al., arXiv 2311.15157, section 3. Shapes in comments use

    B images, H x W tokens, C channels = G segments of S, h heads a segment of D = S / h channels,

where G = 5 as published. Tokens are channels-last (B, H, W, C): the memory of a channels-last
image, so that convolutions and matrix products take the same tensor and nothing is transposed.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmf_platform.errors import UserError
from gmf_platform.models.norm import BatchNorm

__all__ = ["Aggregated", "GroupMixAttention", "SeparableConv", "conv_tokens"]

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
        self.head_dim = segment * attending // num_heads
        # The authors scale by the width a head would have without segments.
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.aggregator = Aggregator(segment, kernel_sizes, aggregated, local_branch)
        self.crpe = ConvRelativePosition(segment, attending) if relative_positions else None
        self.proj = nn.Linear(dim, dim)

    def borrowed_parameters(self) -> Iterator[Tensor]:
        """Parameters of modules inside, which `forward` reads without calling those modules."""
        return iter(()) if self.crpe is None else self.crpe.parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens (B, H, W, C) into tokens of the same shape."""
        qkv = self.qkv(x).unflatten(-1, (3, self.segments, -1))
        segments = qkv.movedim(-2, 0).contiguous()  # (G, B, H, W, 3, S), the one copy
        groups, local = self.aggregator(segments)
        mixed = [self.attend(*group) for group in groups]
        if self.crpe is not None:
            terms = zip(mixed, groups, self.crpe.per_segment(), strict=True)
            mixed = [
                torch.addcmul(attention, q, conv_tokens(v, kernel, bias))
                for attention, (q, _, v), (kernel, bias) in terms
            ]
        return self.proj(torch.cat([*mixed, *local], dim=-1))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention among the heads of one segment.

        Args:
            q: Aggregated queries (B, H, W, S).
            k: Keys, likewise.
            v: Values, likewise.

        Returns:
            Tokens (B, H, W, S).
        """
        q_rows, k_rows, v_rows = (t.flatten(1, 2) for t in (q, k, v))  # (B, N, S)
        # Exponentials of thousands of tokens are summed, so not in bfloat16.
        dtype = torch.promote_types(k.dtype, torch.float32)
        weights = k_rows.softmax(dim=1, dtype=dtype).to(v.dtype)
        # One product for all heads of the segment reads the rows where they lie; the mask then
        # drops what crosses heads.
        context = weights.mT @ v_rows * self.head_mask(v)
        return (q_rows @ context).view(q.shape)

    def head_mask(self, like: Tensor) -> Tensor:
        """The scale (S, S) where two channels belong to one head, else 0."""
        head = like.new_full((self.head_dim, self.head_dim), self.scale)
        return torch.block_diag(*[head] * (like.shape[-1] // self.head_dim))


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

    def forward(self, segments: Tensor) -> tuple[list[tuple[Tensor, ...]], list[Tensor]]:
        """Aggregate segments (G, B, H, W, 3, S) of Q, K, V.

        Returns:
            Q, K and V (B, H, W, S) of each attending segment; and the locally mixed segment
            (B, H, W, S), if there is one.
        """
        attending = segments[: len(self.kernel_sizes)].unbind(0)
        groups = [self.proxies(i, segment) for i, segment in enumerate(attending)]
        return groups, [] if self.agg0 is None else [self.agg0(segments[-1])]

    def proxies(self, number: int, qkv: Tensor) -> tuple[Tensor, ...]:
        """Q, K and V (B, H, W, S) of a segment, of which those that are to be are aggregated."""
        if len(self.places) == 3:
            return self.aggregate(number, qkv).unbind(3)
        tokens = list(qkv.unbind(3))
        if self.places:
            aggregates = self.aggregate(number, qkv[:, :, :, self.places])
            for place, proxy in zip(self.places, aggregates.unbind(3), strict=True):
                tokens[place] = proxy
        return tuple(tokens)

    def aggregate(self, number: int, tokens: Tensor) -> Tensor:
        """Group proxies of tokens (B, H, W, n, S), of the same shape."""
        if self.kernel_sizes[number] > 1:
            tokens = getattr(self, f"agg{number}")(tokens)
        normed: Tensor = getattr(self, f"norm{number}").forward_tokens(tokens)
        return F.hardswish(normed)


class LocalMix(nn.Module):
    """The segment without attention: Q, K and V together, mixed by a 3x3 convolution."""

    def __init__(self, segment: int) -> None:
        super().__init__()
        self.conv = SeparableConv(3 * segment, segment, kernel_size=3)
        self.norm = nn.LayerNorm(segment)

    def forward(self, qkv: Tensor) -> Tensor:
        """Map Q, K, V (B, H, W, 3, S) to tokens (B, H, W, S)."""
        mixed = self.conv(qkv.flatten(3).unsqueeze(3)).squeeze(3)
        return F.hardswish(self.norm(mixed))


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

    def per_segment(self) -> list[tuple[Tensor, Tensor]]:
        """Kernel (S, 1, k, k) and bias (S,) of each of the attending segments.

        As published the third segment has windows of both 5 and 7: where sizes meet in a segment,
        the smaller kernels get a rim of zeros.
        """
        return [self._of_channels(i * self.segment) for i in range(self.attending)]

    def _of_channels(self, first: int) -> tuple[Tensor, Tensor]:
        """Kernel and bias of the segment that begins at a channel."""
        parts = []
        for conv in self.conv_list:
            kernel, bias = conv.parameters()
            begin, end = max(first, 0), min(first + self.segment, len(bias))
            if begin < end:
                parts.append((kernel[begin:end], bias[begin:end]))
            first -= len(bias)
        window = max(kernel.shape[-1] for kernel, _ in parts)
        kernels = [_with_rim(kernel, window) for kernel, _ in parts]
        return torch.cat(kernels), torch.cat([bias for _, bias in parts])


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

    def forward(self, x: Tensor) -> Tensor:
        """Convolve each of G tensors side by side with the same kernels.

        Args:
            x: Tokens (B, H, W, G, inputs).

        Returns:
            Tokens (B, ceil(H / stride), ceil(W / stride), G, outputs).
        """
        copies = x.shape[3]
        kernel = self.conv1.weight.repeat(copies, 1, 1, 1)
        depthwise = conv_tokens(x.flatten(3), kernel, stride=self.conv1.stride[0])
        return F.linear(
            depthwise.unflatten(-1, (copies, -1)), self.pointwise_conv.weight.flatten(1)
        )


def conv_tokens(x: Tensor, kernel: Tensor, bias: Tensor | None = None, stride: int = 1) -> Tensor:
    """Depthwise convolution of channels-last tokens.

    Args:
        x: Tokens (B, H, W, C).
        kernel: Kernel (C, 1, k, k), k odd; the border is padded with (k - 1) / 2 zeros.
        bias: Bias (C,).
        stride: Step between output tokens.

    Returns:
        Tokens (B, ceil(H / stride), ceil(W / stride), C).
    """
    image = x.permute(0, 3, 1, 2)  # the same memory, seen as a channels-last image
    padding = kernel.shape[-1] // 2
    return F.conv2d(image, kernel, bias, stride, padding, groups=len(kernel)).permute(0, 2, 3, 1)
