"""Fast operations on tokens against plain PyTorch: results, gradients, types, memory."""

import pytest
import torch
import torch.nn.functional as F

from gmf_platform.models.backbones.factorised_attention import attend
from gmf_platform.models.token_ops import depthwise, linear, mlp, product


def plain_depthwise(x, kernel, bias=None, stride=1):
    image, padding = x.permute(0, 3, 1, 2), kernel.shape[-1] // 2
    return F.conv2d(image, kernel, bias, stride, padding, groups=len(kernel)).permute(0, 2, 3, 1)


def plain_mlp(x, weight1, bias1, weight2, bias2):
    return F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2)


def plain_attention(qkv, mask, positions=()):
    segments = []
    for i, (q, k, v) in enumerate(qkv.unbind(1)):
        context = torch.einsum("bhwi,bhwj->bij", k.flatten(1, 2).softmax(1).view_as(k), v) * mask
        mixed = torch.einsum("bhwi,bij->bhwj", q, context)
        if positions:
            mixed = mixed + q * plain_depthwise(v, *positions[i])
        segments.append(mixed)
    return torch.stack(segments)


def drawn(*shapes, dtype=torch.float64):
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=dtype).mul_(0.5).requires_grad_() for shape in shapes]


def block_mask(channels, dtype=torch.float64):
    return torch.block_diag(*[torch.full((2, 2), 0.3, dtype=dtype)] * (channels // 2))


def depthwise_case(side, channels=3, size=(5, 7), **options):
    shapes = [(2, *size, channels), (channels, 1, side, side), (channels,)]
    return pytest.param(
        lambda *t: depthwise(*t, **options),
        lambda *t: plain_depthwise(*t, **options),
        shapes,
        id=f"depthwise {side} {options}",
    )


def masked(attention):
    def of_tensors(qkv, *tensors):
        tensors = [tensor.to(qkv.dtype) for tensor in tensors]
        positions = list(zip(tensors[::2], tensors[1::2], strict=True))
        return attention(qkv, block_mask(qkv.shape[-1], qkv.dtype), positions)

    return of_tensors


CASES = [
    pytest.param(linear, F.linear, [(2, 3, 5), (4, 5), (4,)], id="linear"),
    pytest.param(linear, F.linear, [(2, 3, 5), (4, 5)], id="linear without bias"),
    pytest.param(linear, F.linear, [(2, 40, 80), (240, 80), (240,)], id="linear, widening"),
    pytest.param(linear, F.linear, [(2, 40, 96), (72, 96), (72,)], id="linear, narrowing"),
    pytest.param(mlp, plain_mlp, [(2, 3, 5), (9, 5), (9,), (4, 9), (4,)], id="mlp"),
    *(depthwise_case(side) for side in (1, 3, 5, 7, 9)),
    *(depthwise_case(side, size=(2, 3)) for side in (5, 7)),
    depthwise_case(3, stride=2),
    depthwise_case(5, stride=2, size=(8, 9)),
    depthwise_case(3, stride=3),
    depthwise_case(7, channels=16, size=(11, 9)),
    pytest.param(masked(attend), masked(plain_attention), [(3, 2, 2, 3, 5, 6)], id="attention"),
    pytest.param(
        masked(attend),
        masked(plain_attention),
        [(3, 3, 2, 3, 4, 4), (4, 1, 3, 3), (4,), (4, 1, 7, 7), (4,), (4, 1, 5, 5), (4,)],
        id="attention with positions",
    ),
]
SMALL = [case for case in CASES if max(torch.Size(s).numel() for s in case.values[2]) < 600]


def gradients(function, tensors):
    copies = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    y = function(*copies)
    torch.manual_seed(1)
    # Of a gradient that is no dense tensor, as a head may hand it over.
    y.backward(torch.randn(y.shape[:-1]).to(y.dtype)[..., None].expand(y.shape))
    return [y, *(copy.grad for copy in copies)]


@pytest.mark.parametrize(("fast", "plain", "shapes"), CASES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)]
)
def test_equals_plain_pytorch(fast, plain, shapes, dtype, tolerance, relative_error):
    tensors = [tensor.detach().to(dtype) for tensor in drawn(*shapes)]
    expected = gradients(plain, [tensor.double() for tensor in tensors])
    for value, reference in zip(gradients(fast, tensors), expected, strict=True):
        assert value.dtype == dtype
        assert relative_error(value.double(), reference) < tolerance


@pytest.mark.parametrize(("fast", "plain", "shapes"), SMALL)
def test_gradients_by_finite_differences(fast, plain, shapes):
    assert torch.autograd.gradcheck(fast, drawn(*shapes))


@pytest.mark.parametrize(("fast", "plain", "shapes"), CASES)
def test_autocast_and_inference(fast, plain, shapes, relative_error):
    tensors = drawn(*shapes, dtype=torch.float32)
    with torch.no_grad():
        expected = plain(*tensors)
        assert relative_error(fast(*tensors), expected) < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        given = [
            tensor.detach().bfloat16() if t == 0 else tensor for t, tensor in enumerate(tensors)
        ]
        y = fast(*given)
    assert y.dtype == torch.bfloat16
    assert relative_error(y.float(), expected) < 0.03
    if len(tensors) > 1:
        y.float().square().sum().backward()
        assert all(tensor.grad.dtype == torch.float32 for tensor in tensors[1:])


def test_frozen_weights_get_no_gradient():
    x, weight, bias = drawn((2, 5, 7, 3), (3, 1, 5, 5), (3,))
    depthwise(x, weight.requires_grad_(False), bias.requires_grad_(False)).sum().backward()
    assert weight.grad is None
    assert x.grad.any()


def test_no_tokens():
    x, weight, bias = drawn((0, 5, 3), (4, 3), (4,), dtype=torch.float32)
    y = linear(x, weight, bias)
    y.sum().backward()
    assert y.shape == (0, 5, 4)
    assert not weight.grad.any()


def kept_elements(function, tensors):
    kept = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = function(*tensors)
    assert y.requires_grad
    return sum(kept.values()) - sum(t.numel() for t in tensors if t.data_ptr() in kept)


def test_what_is_cheap_is_computed_again():
    tensors = drawn((2, 30, 8), (32, 8), (32,), (8, 32), (8,))
    hidden = 2 * 30 * 32
    assert kept_elements(mlp, tensors) == hidden
    assert kept_elements(plain_mlp, tensors) == 2 * hidden
    tensors = drawn((3, 1, 2, 5, 6, 4), (4, 1, 3, 3), (4,))
    assert kept_elements(masked(attend), tensors) <= 4 * 4  # the mask
    assert kept_elements(masked(plain_attention), tensors) > 2 * 5 * 6 * 4


def test_a_device_without_autocast():
    """Operations are counted on it."""
    x, weight = torch.empty(5, 3, device="meta"), torch.empty(7, 3, device="meta")
    assert product(x, weight).shape == (5, 7)


@pytest.mark.parametrize(("fast", "plain", "shapes"), CASES)
def test_the_way_of_other_devices(fast, plain, shapes, relative_error, monkeypatch):
    """What a GPU takes, on the CPU."""
    monkeypatch.setattr("gmf_platform.models.token_ops._on_cpu", lambda x: False)
    tensors = drawn(*shapes)
    expected = gradients(plain, tensors)
    for value, reference in zip(gradients(fast, tensors), expected, strict=True):
        assert relative_error(value, reference) < 1e-12
