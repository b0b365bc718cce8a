"""Group-Mix Attention against its formula written head by head, and the copies it makes."""

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from gmf_platform.errors import UserError
from gmf_platform.models.backbones import GroupMixAttention
from gmf_platform.models.backbones.group_mix_attention import Aggregated
from gmf_platform.models.backbones.groupmixformer import Block


def reference(
    attention,
    x,
    num_heads=8,
    *,
    kernel_sizes=(3, 5, 7),
    local_branch=True,
    aggregated="qkv",
    relative_positions=True,
):
    """The formula, with images (B, C, H, W) and one head at a time."""
    batch, height, width, channels = x.shape
    attending = 1 + len(kernel_sizes)
    size = channels // (attending + local_branch)  # channels of a segment
    head = attending * size // num_heads  # channels of a head
    qkv = attention.qkv(x).permute(0, 3, 1, 2).chunk(3, dim=1)
    parts = attention.aggregator

    def depthwise(weights, image):
        return F.conv2d(image, weights, padding=weights.shape[-1] // 2, groups=len(weights))

    def proxies(i, image, letter):
        if letter not in aggregated or aggregated == "none":
            return image
        if i > 0 and kernel_sizes[i - 1] > 1:
            separable = getattr(parts, f"agg{i}")
            image = depthwise(separable.conv1.weight, image)
            image = F.conv2d(image, separable.pointwise_conv.weight)
        norm = getattr(parts, f"norm{i}")
        mean, var = norm.running_mean, norm.running_var
        return F.hardswish(F.batch_norm(image, mean, var, norm.weight, norm.bias))

    segments = [image.split(size, dim=1) for image in qkv]
    q, k, v = (
        torch.cat([proxies(i, image[i], letter) for i in range(attending)], dim=1)
        for image, letter in zip(segments, "qkv", strict=True)
    )
    positions = torch.zeros_like(v)
    if relative_positions:
        convs = attention.crpe.conv_list
        pieces = v.split([len(conv.bias) for conv in convs], dim=1)
        positions = torch.cat([conv(p) for conv, p in zip(convs, pieces, strict=True)], dim=1)
    q, k, v, positions = (image.split(head, dim=1) for image in (q, k, v, positions))
    heads = []
    for i in range(num_heads):
        rows = [image[i].flatten(2).mT for image in (q, k, v)]  # (B, N, D)
        context = rows[1].softmax(dim=1).mT @ rows[2]
        attended = (channels // num_heads) ** -0.5 * rows[0] @ context
        heads.append(attended.mT.reshape(batch, head, height, width) + q[i] * positions[i])
    mixed = torch.cat(heads, dim=1).permute(0, 2, 3, 1)
    if not local_branch:
        return attention.proj(mixed)

    local = parts.agg0
    image = depthwise(local.conv.conv1.weight, torch.cat([s[-1] for s in segments], dim=1))
    image = F.conv2d(image, local.conv.pointwise_conv.weight)
    image = F.layer_norm(image.permute(0, 2, 3, 1), (size,), local.norm.weight, local.norm.bias)
    return attention.proj(torch.cat([mixed, F.hardswish(image)], dim=-1))


WIDTH = 480  # which 1 to 5 segments can share
ABLATIONS = [
    {},
    {"num_heads": 16},
    *({"aggregated": letters} for letters in get_args(Aggregated)),
    {"local_branch": False},
    {"relative_positions": False},
    {"kernel_sizes": (1, 5, 7)},
    {"kernel_sizes": (9, 9, 9)},
    {"kernel_sizes": (3,), "num_heads": 8},  # two attending segments
    {"kernel_sizes": (3, 5), "num_heads": 24},  # three
    {"kernel_sizes": (), "local_branch": False},  # one
    {"kernel_sizes": (3, 1, 5), "local_branch": False, "aggregated": "qv"},
    {"aggregated": "none", "local_branch": False, "relative_positions": False},
]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 3e-6)])
@pytest.mark.parametrize("options", ABLATIONS, ids=str)
def test_equals_the_formula_head_by_head(options, dtype, tolerance, relative_error):
    torch.manual_seed(0)
    attention = GroupMixAttention(WIDTH, **options).eval()
    for tensor in attention.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 1) if tensor.ndim == 1 else tensor.normal_(std=0.3)
    attention.to(dtype)
    x = torch.randn(2, 5, 7, WIDTH, dtype=dtype)
    assert relative_error(attention(x), reference(attention, x, **options)) < tolerance


@pytest.mark.parametrize("options", ABLATIONS, ids=str)
def test_every_parameter_is_used(options):
    torch.manual_seed(0)
    attention = GroupMixAttention(WIDTH, **options)
    x = torch.randn(2, 3, 4, WIDTH)
    (attention(x) * torch.randn_like(x)).sum().backward()
    assert [n for n, p in attention.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_gradients_in_float64():
    torch.manual_seed(0)
    attention = GroupMixAttention(10).double()
    x = torch.randn(2, 2, 3, 10, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(attention, x)


@pytest.mark.parametrize(("dim", "num_heads"), [(44, 8), (40, 4), (30, 16)])
def test_refuses_widths_that_do_not_split(dim, num_heads):
    with pytest.raises(UserError, match="multiple"):
        GroupMixAttention(dim, num_heads)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kernel_sizes": (3, 4, 7)}, r"kernel_sizes \(3, 4, 7\): each has to be odd"),
        ({"kernel_sizes": (3, -1, 7)}, r"kernel_sizes \(3, -1, 7\)"),
        ({"kernel_sizes": (3, 5)}, "heads a multiple of 8 and of 3"),
        ({"kernel_sizes": (3,)}, "channels a multiple of 3 times"),
    ],
)
def test_refuses_ablations_that_do_not_fit(options, said):
    with pytest.raises(UserError, match=said):
        GroupMixAttention(40, **options)


def copied_elements(module, x):
    """Elements moved to give a tensor another layout."""
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], record_shapes=True) as prof:
        module(x)
    shapes = [e.input_shapes[0] for e in prof.events() if e.name == "aten::clone"]
    return sum(torch.Size(shape).numel() for shape in shapes)


def test_a_block_copies_its_segments_and_nothing_else():
    block = Block(80, 4.0, 0.0).eval()
    x = torch.randn(2, 16, 16, 80)
    # The segments of Q, K, V once; then those of the convolved segment side by side, 3/5.
    assert copied_elements(block, x) <= (3 + 3 / 5) * x.numel()


def test_the_copies_are_counted():
    x = torch.randn(2, 16, 16, 80)
    assert copied_elements(nn.Flatten(), x.permute(0, 3, 1, 2)) == x.numel()
