"""Factorised attention with relative positions among the channels of each segment."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gmf_platform.models.token_ops import depthwise, depthwise_gradients

__all__ = ["Positions", "attend"]


Positions = Sequence[tuple[Tensor, Tensor]]
"""Depthwise kernel (S, 1, k, k) and bias (S,) of each segment, k of its own."""


def attend(qkv: Tensor, mask: Tensor, positions: Positions = ()) -> Tensor:
    """Compute Q (softmax(K)^T V * mask) + Q * depthwise(V), the softmax over an image's tokens.

    What is computed on the way, all but two small matrices, is computed again in the backward pass.

    Args:
        qkv: Queries, keys and values of G segments (3, G, B, H, W, S).
        mask: The scale where two channels belong to one head, else 0; (S, S).
        positions: What the second term convolves with, of the dtype of ``qkv``; without them there
            is none.

    Returns:
        Tokens (G, B, H, W, S).
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return _attend(qkv, mask, positions)
    result: Tensor = _Attend.apply(qkv, mask, *chain.from_iterable(positions))
    return result


def _attend(qkv: Tensor, mask: Tensor, positions: Positions) -> Tensor:
    q, k, v = qkv.unbind(0)
    context = _products(_weights(k).to(v.dtype), v, mask)
    attended = torch.bmm(_rows(q), context).view(q.shape)
    if not positions:
        return attended
    convolved = (depthwise(one, *position) for one, position in zip(v, positions, strict=True))
    if torch.compiler.is_compiling():
        return torch.addcmul(attended, q, torch.stack(list(convolved)))
    for segment, queries, values in zip(attended, q, convolved, strict=True):
        segment.addcmul_(queries, values)
    return attended


def _weights(k: Tensor) -> Tensor:
    """Softmax over tokens; exponentials of thousands are summed, so not in bfloat16."""
    weights = F.softmax(_rows(k), dim=1, dtype=torch.promote_types(k.dtype, torch.float32))
    return weights.view(k.shape)


def _products(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """Masked sums (G * B, S, S) over an image's tokens of products of two channels."""
    return torch.bmm(_rows(a).mT, _rows(b)).mul_(mask)


def _rows(tokens: Tensor) -> Tensor:
    return tokens.flatten(-3, -2).flatten(0, -3)  # (G * B, N, S)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, mask: Tensor, *positions: Tensor) -> Tensor:
        ctx.save_for_backward(qkv, mask, *positions)
        return _attend(qkv, mask, _in_pairs(positions))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qkv, mask, *positions = ctx.saved_tensors
        q, k, v = qkv.unbind(0)
        grad = grad.contiguous()
        grad_qkv = torch.empty_like(qkv)
        grad_q, grad_k, grad_v = grad_qkv.unbind(0)

        full = _weights(k)
        weights = full.to(v.dtype)
        context = _products(weights, v, mask)
        grad_context = _products(q, grad, mask)
        torch.bmm(_rows(grad), context.mT, out=_rows(grad_q))
        torch.bmm(_rows(weights), grad_context, out=_rows(grad_v))
        grad_weights = torch.bmm(_rows(v), grad_context.mT).to(full.dtype)
        through_k = torch._softmax_backward_data(grad_weights, _rows(full), 1, full.dtype)
        grad_k.copy_(through_k.view(k.shape))
        if not positions:
            return grad_qkv, None

        grad_convolved = grad * q
        grad_biases = grad_convolved.sum((1, 2, 3))
        grad_positions: list[Tensor] = []
        for i, (kernel, bias) in enumerate(_in_pairs(positions)):
            grad_q[i].addcmul_(grad[i], depthwise(v[i], kernel, bias))
            through_v, grad_kernel = depthwise_gradients(v[i], kernel, grad_convolved[i])
            grad_v[i] += through_v
            grad_positions += [grad_kernel, grad_biases[i]]
        return grad_qkv, None, *grad_positions


def _in_pairs(positions: Sequence[Tensor]) -> Positions:
    return list(zip(positions[::2], positions[1::2], strict=True))
