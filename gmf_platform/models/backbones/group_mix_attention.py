"""Group-Mix Attention: attention between groups of tokens of several sizes.

GroupMixFormer, Ge et al., arXiv 2311.15157, section 3. Shapes in comments use

    B images, H x W tokens, C channels = 5 segments of S, h heads a segment of D = S / h channels.

Tokens are channels-last (B, H, W, C): the memory of a channels-last image, so that convolutions
and matrix products take the same tensor and nothing is transposed.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmf_platform.errors import UserError
from gmf_platform.models.norm import BatchNorm

__all__ = ["GroupMixAttention", "SeparableConv", "conv_tokens"]

SEGMENTS = 5
"""Channel segments of Q, K and V: four attend, the last one is convolved only."""

ATTENDING = 4
"""The first keeps single tokens; the others aggregate groups of 3x3, 5x5 and 7x7 tokens."""


class GroupMixAttention(nn.Module):
    """Multi-head attention whose heads see single tokens and groups of 3x3, 5x5 and 7x7 tokens.

    With Q, K, V the aggregated projections of one head (N tokens, D channels) it computes

        scale * Q (softmax(K)^T V) + Q * depthwise(V),

    where the softmax runs over the N tokens, so that time and memory grow linearly with N
    ("factorised attention"; the second term encodes relative positions; both from CoaT, Xu et al.,
    arXiv 2104.06399). The fifth segment of channels mixes neighbours by a convolution instead.

    Args:
        dim: Channels C, a multiple of ``5 * num_heads / 4``.
        num_heads: Heads over the four attending segments, a multiple of 8.

    Raises:
        UserError: If they are not such multiples.
    """

    def __init__(self, dim: int, num_heads: int = 8) -> None:
        super().__init__()
        if num_heads % 8 or dim % (5 * num_heads // 4):
            raise UserError(
                f"Group-Mix Attention cannot split {dim} channels over {num_heads} heads. Make the "
                "heads a multiple of 8 and the channels a multiple of 5/4 of the heads (of 10 for "
                "the 8 heads of GroupMixFormer)."
            )
        self.head_dim = dim // SEGMENTS * ATTENDING // num_heads
        # The authors scale by the width a head would have without segments.
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.aggregator = Aggregator(dim // SEGMENTS)
        self.crpe = ConvRelativePosition(self.head_dim, num_heads)
        self.proj = nn.Linear(dim, dim)

    def borrowed_parameters(self) -> Iterator[Tensor]:
        """Parameters of modules inside, which `forward` reads without calling those modules."""
        return self.crpe.parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens (B, H, W, C) into tokens of the same shape."""
        qkv = self.qkv(x).unflatten(-1, (3, SEGMENTS, -1))
        segments = qkv.movedim(-2, 0).contiguous()  # (5, B, H, W, 3, S), the one copy
        *groups, local = self.aggregator(segments)
        mixed = [
            self.attend(group, kernel, bias)
            for group, (kernel, bias) in zip(groups, self.crpe.per_segment(), strict=True)
        ]
        return self.proj(torch.cat([*mixed, local], dim=-1))

    def attend(self, qkv: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        """Attention among the heads of one segment.

        Args:
            qkv: Aggregated Q, K, V (B, H, W, 3, S).
            kernel: Depthwise kernel of the relative positions (S, 1, k, k).
            bias: Its bias (S,).

        Returns:
            Tokens (B, H, W, S).
        """
        q, k, v = qkv.unbind(3)
        q_rows, k_rows, v_rows = (t.flatten(1, 2) for t in (q, k, v))  # (B, N, S)
        # Exponentials of thousands of tokens are summed, so not in bfloat16.
        dtype = torch.promote_types(k.dtype, torch.float32)
        weights = k_rows.softmax(dim=1, dtype=dtype).to(v.dtype)
        # One product for all heads of the segment reads the rows where they lie; the mask then
        # drops what crosses heads.
        context = weights.mT @ v_rows * self.head_mask(v)
        attention = (q_rows @ context).view(q.shape)
        return torch.addcmul(attention, q, conv_tokens(v, kernel, bias))

    def head_mask(self, like: Tensor) -> Tensor:
        """The scale (S, S) where two channels belong to one head, else 0."""
        head = like.new_full((self.head_dim, self.head_dim), self.scale)
        return torch.block_diag(*[head] * (like.shape[-1] // self.head_dim))


class Aggregator(nn.Module):
    """Turns segments of Q, K and V into group proxies, by kernels shared among the three.

    Because they are shared, Q, K and V are also normalised by joint statistics.
    """

    def __init__(self, segment: int) -> None:
        super().__init__()
        self.norm0 = BatchNorm(segment)
        self.agg1 = SeparableConv(segment, segment, kernel_size=3)
        self.norm1 = BatchNorm(segment)
        self.agg2 = SeparableConv(segment, segment, kernel_size=5)
        self.norm2 = BatchNorm(segment)
        self.agg3 = SeparableConv(segment, segment, kernel_size=7)
        self.norm3 = BatchNorm(segment)
        self.agg0 = LocalMix(segment)

    def forward(self, segments: Tensor) -> list[Tensor]:
        """Aggregate segments (5, B, H, W, 3, S) of Q, K, V.

        Returns:
            Four group proxies (B, H, W, 3, S), and the locally mixed segment (B, H, W, S).
        """
        s0, s1, s2, s3, s4 = segments.unbind(0)
        return [
            F.hardswish(self.norm0.forward_tokens(s0)),
            F.hardswish(self.norm1.forward_tokens(self.agg1(s1))),
            F.hardswish(self.norm2.forward_tokens(self.agg2(s2))),
            F.hardswish(self.norm3.forward_tokens(self.agg3(s3))),
            self.agg0(s4),
        ]


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
    """Depthwise kernels over V: 2, 3 and 3 eighths of the heads have windows of 3, 5 and 7."""

    def __init__(self, head_dim: int, num_heads: int) -> None:
        super().__init__()
        eighth = head_dim * num_heads // 8
        self.conv_list = nn.ModuleList(
            nn.Conv2d(n * eighth, n * eighth, window, padding=window // 2, groups=n * eighth)
            for n, window in ((2, 3), (3, 5), (3, 7))
        )

    def per_segment(self) -> list[tuple[Tensor, Tensor]]:
        """Kernel (S, 1, k, k) and bias (S,) of each of the four attending segments.

        The third segment has windows of both 5 and 7: its 5x5 kernels get a rim of zeros.
        """
        (w3, b3), (w5, b5), (w7, b7) = (tuple(conv.parameters()) for conv in self.conv_list)
        segment = len(w3)
        w57 = torch.cat([F.pad(w5[segment:], (1, 1, 1, 1)), w7[:-segment]])
        b57 = torch.cat([b5[segment:], b7[:-segment]])
        return [
            (w3, b3),
            (w5[:segment], b5[:segment]),
            (w57, b57),
            (w7[-segment:], b7[-segment:]),
        ]


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
