"""Linear layers and depthwise convolutions of channels-last tokens, by the fastest way at hand.

Each function computes what its plain PyTorch form does, and says where it departs from it:

- In float32 and bfloat16 on a CPU, products go to oneDNN. PyTorch hands those of float32 to MKL,
  which reaches half of oneDNN's speed on AMD's processors.
- Gradients of depthwise convolutions with strides, or with kernels wider than 3, are taken from
  those of 3 x 3 kernels without strides on a CPU: for others oneDNN falls back on code that is up
  to 20 times slower.
- What is cheap to compute again is not kept for the backward pass.

Under ``torch.compile`` the plain forms are used, which the compiler fuses by itself.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = [
    "Epilogue",
    "depthwise",
    "depthwise_gradients",
    "linear",
    "mlp",
    "product",
    "without_autocast",
]

Epilogue = Literal["none", "gelu", "hardswish"]
"""What follows a product."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``, under autocast too.

    Args:
        x: Tokens (..., inputs).
        weight: Weights (outputs, inputs).
        bias: Biases (outputs,).

    Returns:
        Tokens (..., outputs).
    """
    if torch.compiler.is_compiling() or not _on_cpu(x):
        return F.linear(x, weight, bias)
    if not torch.is_grad_enabled():
        return product(x, weight, bias)
    result: Tensor = _Linear.apply(*_as_autocast(x, weight, bias))
    return result


def mlp(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """Two linear layers around a GELU, whose output is computed again in the backward pass.

    Args:
        x: Tokens (..., inputs).
        weight1: Weights (hidden, inputs).
        bias1: Biases (hidden,).
        weight2: Weights (outputs, hidden).
        bias2: Biases (outputs,).

    Returns:
        Tokens (..., outputs).
    """
    if torch.compiler.is_compiling():
        return F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2)
    if not torch.is_grad_enabled():
        return product(product(x, weight1, bias1, "gelu"), weight2, bias2)
    result: Tensor = _Mlp.apply(*_as_autocast(x, weight1, bias1, weight2, bias2))
    return result


def depthwise(x: Tensor, kernel: Tensor, bias: Tensor | None = None, stride: int = 1) -> Tensor:
    """Depthwise convolution, under autocast too.

    Args:
        x: Tokens (B, H, W, C).
        kernel: Kernel (C, 1, k, k), k odd; the border is padded with (k - 1) / 2 zeros.
        bias: Bias (C,).
        stride: Step between output tokens.

    Returns:
        Tokens (B, ceil(H / stride), ceil(W / stride), C).
    """
    plain = torch.compiler.is_compiling() or not _on_cpu(x)
    if plain or not torch.is_grad_enabled():
        return _convolve(x, kernel, bias, stride)
    result: Tensor = _Depthwise.apply(*_as_autocast(x, kernel, bias), stride)
    return result


def depthwise_gradients(x: Tensor, kernel: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `depthwise` with stride 1.

    Args:
        x: Its input (B, H, W, C).
        kernel: Its kernel (C, 1, k, k).
        grad: Gradient of its output (B, H, W, C).

    Returns:
        Gradients of ``x`` and of ``kernel``.
    """
    side = kernel.shape[-1]
    if not _on_cpu(x):
        grad_x, grad_kernel = _native_gradients(x, kernel, grad, side // 2, [True, True, False])
        return grad_x.permute(0, 2, 3, 1), grad_kernel
    # A convolution with the kernel turned round: faster than oneDNN's own gradient.
    grad_x = _convolve(grad, kernel.flip(2, 3))
    if side > 3:
        return grad_x, _kernel_gradient_by_parts(x, side, grad)
    return grad_x, _native_kernel_gradient(x, kernel, grad, side // 2)


def _convolve(x: Tensor, kernel: Tensor, bias: Tensor | None = None, stride: int = 1) -> Tensor:
    padding = kernel.shape[-1] // 2
    image = _image(x)
    return F.conv2d(image, kernel, bias, stride, padding, groups=len(kernel)).permute(0, 2, 3, 1)


def _image(tokens: Tensor) -> Tensor:
    """The same memory, seen as a channels-last image."""
    return tokens.permute(0, 3, 1, 2)


def _kernel_gradient_by_parts(x: Tensor, side: int, grad: Tensor) -> Tensor:
    """The kernel's gradient, from those of the 3 x 3 kernels that it can be cut into."""
    height, width, channels = x.shape[1:]
    parts = -(-side // 3)
    before, after = side // 2, 3 * parts - 1 - side // 2
    padded = F.pad(x, (0, 0, before, after, before, after))
    corners = [(3 * i, 3 * j) for i in range(parts) for j in range(parts)]
    windows = [padded[:, i : i + height + 2, j : j + width + 2] for i, j in corners]
    kernel = x.new_empty(channels, 1, 3, 3)
    pieces = [_native_kernel_gradient(w, kernel, grad, padding=0) for w in windows]
    gradient = torch.cat(pieces).view(parts, parts, channels, 3, 3).permute(2, 0, 3, 1, 4)
    return gradient.reshape(channels, 1, 3 * parts, 3 * parts)[:, :, :side, :side]


def _native_kernel_gradient(
    x: Tensor, kernel: Tensor, grad: Tensor, padding: int, groups: int | None = None
) -> Tensor:
    """The gradient of a kernel, depthwise if no groups are given; its values do not matter."""
    return _native_gradients(x, kernel, grad, padding, [False, True, False], groups)[1]


def _native_gradients(
    x: Tensor,
    kernel: Tensor,
    grad: Tensor,
    padding: int,
    wanted: list[bool],
    groups: int | None = None,
) -> tuple[Tensor, Tensor]:
    """PyTorch's gradients of the image and of the kernel, those that are wanted."""
    grad_image, grad_kernel, _ = torch.ops.aten.convolution_backward(
        *(_image(grad), _image(x), kernel, None),
        *([1, 1], [padding, padding], [1, 1], False, [0, 0], groups or len(kernel), wanted),
    )
    return grad_image, grad_kernel


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        ctx.save_for_backward(x, kernel)
        ctx.stride = stride
        return _convolve(x, kernel, bias, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel = ctx.saved_tensors
        grad_bias = grad.sum((0, 1, 2)) if ctx.needs_input_grad[2] else None
        if ctx.stride > 1:  # as of all tokens, of which some gave nothing
            some, grad = grad, torch.zeros_like(x)
            grad[:, :: ctx.stride, :: ctx.stride] = some
        return *depthwise_gradients(x, kernel, grad), grad_bias, None


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
        return *_product_gradients(x, weight, grad), grad_bias


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor
    ) -> Tensor:
        hidden = product(x, weight1, bias1)
        ctx.save_for_backward(x, hidden, weight1, weight2)
        return product(F.gelu(hidden), weight2, bias2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, hidden, weight1, weight2 = ctx.saved_tensors
        grad_active, grad_weight2 = _product_gradients(F.gelu(hidden), weight2, grad)
        grad_hidden = torch.ops.aten.gelu_backward(grad_active, hidden)
        grad_x, grad_weight1 = _product_gradients(x, weight1, grad_hidden)
        grad_bias1, grad_bias2 = (rows.flatten(0, -2).sum(0) for rows in (grad_hidden, grad))
        return grad_x, grad_weight1, grad_bias1, grad_weight2, grad_bias2


def product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, epilogue: Epilogue = "none"
) -> Tensor:
    """A linear layer and what follows it, under autocast too; it has no gradients on a CPU.

    Args:
        x: Tokens (..., inputs).
        weight: Weights (outputs, inputs).
        bias: Biases (outputs,).
        epilogue: Computed in the same pass over memory, where the device can.

    Returns:
        Tokens (..., outputs).
    """
    x, weight, bias = _as_autocast(x, weight, bias)
    if _takes_onednn(x):
        # What torch.compile calls for linear layers on CPUs.
        algorithm = "none"  # the GELU by the error function
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, epilogue, [], algorithm)
    y = F.linear(x, weight, bias)
    match epilogue:
        case "gelu":
            return F.gelu(y)
        case "hardswish":
            return F.hardswish(y)
        case _:
            return y


def _product_gradients(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight of a linear layer."""
    grad = grad.contiguous()
    grad_x = product(grad, weight.t())
    if not _takes_onednn(x):
        return grad_x, grad.flatten(0, -2).t() @ x.flatten(0, -2)
    # As of a pointwise convolution: oneDNN's products want one of the matrices turned round first.
    pointwise = weight[:, :, None, None]
    grad_weight = _native_kernel_gradient(_maps(x), pointwise, _maps(grad), padding=0, groups=1)
    return grad_x, grad_weight.flatten(1)


def _maps(x: Tensor) -> Tensor:
    """Tokens (..., C), of any number of dimensions, as (B, H, W, C)."""
    return x.flatten(0, -4) if x.ndim > 3 else x.reshape(1, 1, -1, x.shape[-1])


def _takes_onednn(x: Tensor) -> bool:
    """Whether oneDNN multiplies it on this machine; it refuses tensors without elements."""
    return _on_cpu(x) and x.dtype in _onednn_dtypes() and x.numel() > 0


def _on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu"


@cache
def _onednn_dtypes() -> frozenset[torch.dtype]:
    """What oneDNN multiplies on this machine."""
    if not torch.backends.mkldnn.is_available():
        return frozenset()
    bfloat16 = {torch.bfloat16} if torch.ops.mkldnn._is_mkldnn_bf16_supported() else set()
    return frozenset({torch.float32} | bfloat16)


def without_autocast(device: str) -> AbstractContextManager[None]:
    """A context in which autocast leaves operations on a kind of device alone."""
    if device == "meta":  # it has none
        return nullcontext()
    context: AbstractContextManager[None] = torch.autocast(device, enabled=False)
    return context


def _as_autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors in the type that autocast has convolutions and products take."""
    assert tensors[0] is not None
    device = tensors[0].device.type
    has_autocast = torch.amp.is_autocast_available(device)  # the meta device has not
    if (
        not has_autocast
        or not torch.is_autocast_enabled(device)
        or tensors[0].dtype == torch.float64
    ):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)
