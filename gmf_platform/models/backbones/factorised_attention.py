"""Factorised attention with relative positions among the channels of one segment."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gmf_platform.models.token_ops import depthwise, depthwise_gradients

__all__ = ["attend"]


def attend(qkv: Tensor, mask: Tensor, kernel: Tensor | None, bias: Tensor | None) -> Tensor:
    """Compute Q (softmax(K)^T V * mask) + Q * depthwise(V), the softmax over an image's tokens.

    What is computed on the way, all but two small matrices, is computed again in the backward pass.

    Args:
        qkv: Queries, keys and values (3, B, H, W, S).
        mask: The scale where two channels belong to one head, else 0; (S, S).
        kernel: Depthwise kernel (S, 1, k, k) of the second term; None: there is none.
        bias: Its bias (S,).

    Returns:
        Tokens (B, H, W, S).
    """
    if kernel is not None and bias is not None:
        kernel, bias = kernel.to(qkv.dtype), bias.to(qkv.dtype)
    mask = mask.to(qkv.dtype)
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return _attend(qkv, mask, kernel, bias)
    result: Tensor = _Attend.apply(qkv, mask, kernel, bias)
    return result


def _attend(qkv: Tensor, mask: Tensor, kernel: Tensor | None, bias: Tensor | None) -> Tensor:
    q, k, v = qkv.unbind(0)
    context = _rows(_weights(k)).to(v.dtype).mT @ _rows(v) * mask
    attended = (_rows(q) @ context).view(q.shape)
    if kernel is None:
        return attended
    return torch.addcmul(attended, q, depthwise(v, kernel, bias))


def _weights(k: Tensor) -> Tensor:
    """Softmax over tokens; exponentials of thousands are summed, so not in bfloat16."""
    weights = F.softmax(_rows(k), dim=1, dtype=torch.promote_types(k.dtype, torch.float32))
    return weights.view(k.shape)


def _rows(tokens: Tensor) -> Tensor:
    return tokens.flatten(1, 2)  # (B, N, S)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, mask: Tensor, kernel: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(qkv, mask, kernel, bias)
        return _attend(qkv, mask, kernel, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qkv, mask, kernel, bias = ctx.saved_tensors
        q, k, v = qkv.unbind(0)
        grad = grad.contiguous()
        grad_qkv = torch.empty_like(qkv)
        grad_q, grad_k, grad_v = (_rows(part) for part in grad_qkv.unbind(0))

        full = _rows(_weights(k))
        weights = full.to(v.dtype)
        context = weights.mT @ _rows(v) * mask
        grad_context = _rows(q).mT @ _rows(grad) * mask
        torch.bmm(_rows(grad), context.mT, out=grad_q)
        torch.bmm(weights, grad_context, out=grad_v)
        grad_weights = (_rows(v) @ grad_context.mT).to(full.dtype)
        grad_k.copy_(torch._softmax_backward_data(grad_weights, full, 1, full.dtype))
        if kernel is None:
            return grad_qkv, None, None, None

        grad_positions = grad * q
        grad_q.addcmul_(_rows(grad), _rows(depthwise(v, kernel, bias)))
        through_v, grad_kernel = depthwise_gradients(v, kernel, grad_positions)
        grad_v += _rows(through_v)
        return grad_qkv, None, grad_kernel, grad_positions.sum((0, 1, 2))
