"""Group-Mix Attention against its formula written head by head, and the copies it makes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from gmf_platform.errors import UserError
from gmf_platform.models.backbones import GroupMixAttention
from gmf_platform.models.backbones.groupmixformer import Block

DIM, SEGMENT = 40, 8


def reference(attention, x, num_heads):
    """The formula, with images (B, C, H, W) and one head at a time."""
    batch, height, width, _ = x.shape
    head = 4 * SEGMENT // num_heads  # channels
    qkv = attention.qkv(x).permute(0, 3, 1, 2).chunk(3, dim=1)
    parts = attention.aggregator

    def depthwise(weights, image):
        return F.conv2d(image, weights, padding=weights.shape[-1] // 2, groups=len(weights))

    def proxies(i, image):
        if i > 0:
            separable = getattr(parts, f"agg{i}")
            image = depthwise(separable.conv1.weight, image)
            image = F.conv2d(image, separable.pointwise_conv.weight)
        norm = getattr(parts, f"norm{i}")
        mean, var = norm.running_mean, norm.running_var
        return F.hardswish(F.batch_norm(image, mean, var, norm.weight, norm.bias))

    segments = [image.split(SEGMENT, dim=1) for image in qkv]
    q, k, v = (
        torch.cat([proxies(i, image[i]) for i in range(4)], dim=1).split(head, dim=1)
        for image in segments
    )
    kernels = [(c.weight, c.bias) for c in attention.crpe.conv_list for _ in range(len(c.bias))]
    offsets = [j for c in attention.crpe.conv_list for j in range(len(c.bias))]
    heads = []
    for i in range(num_heads):
        rows = [image[i].flatten(2).mT for image in (q, k, v)]  # (B, N, D)
        context = rows[1].softmax(dim=1).mT @ rows[2]
        attended = (DIM // num_heads) ** -0.5 * rows[0] @ context
        position = torch.cat(
            [
                depthwise(weight[j : j + 1], v[i][:, d : d + 1]) + bias[j]
                for d in range(head)
                for (weight, bias), j in [(kernels[i * head + d], offsets[i * head + d])]
            ],
            dim=1,
        )
        heads.append(attended.mT.reshape(batch, head, height, width) + q[i] * position)

    local = parts.agg0
    image = depthwise(local.conv.conv1.weight, torch.cat([s[4] for s in segments], dim=1))
    image = F.conv2d(image, local.conv.pointwise_conv.weight)
    image = F.layer_norm(image.permute(0, 2, 3, 1), (SEGMENT,), local.norm.weight, local.norm.bias)
    mixed = torch.cat([torch.cat(heads, dim=1).permute(0, 2, 3, 1), F.hardswish(image)], dim=-1)
    return attention.proj(mixed)


@pytest.mark.parametrize("num_heads", [8, 16])
def test_equals_the_formula_head_by_head(num_heads, relative_error):
    torch.manual_seed(0)
    attention = GroupMixAttention(DIM, num_heads).eval()
    for tensor in attention.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 1) if tensor.ndim == 1 else tensor.normal_(std=0.3)
    x = torch.randn(2, 5, 7, DIM)
    assert relative_error(attention(x), reference(attention, x, num_heads)) < 1e-6


def test_gradients_in_float64():
    torch.manual_seed(0)
    attention = GroupMixAttention(10).double()
    x = torch.randn(2, 2, 3, 10, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(attention, x)


@pytest.mark.parametrize(("dim", "num_heads"), [(44, 8), (40, 4), (30, 16)])
def test_refuses_widths_that_do_not_split(dim, num_heads):
    with pytest.raises(UserError, match="multiple"):
        GroupMixAttention(dim, num_heads)


def copied_elements(module, x):
    """Elements moved to give a tensor another layout."""
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], record_shapes=True) as prof:
        module(x)
    shapes = [e.input_shapes[0] for e in prof.events() if e.name == "aten::clone"]
    return sum(torch.Size(shape).numel() for shape in shapes)


def test_a_block_copies_its_segments_and_nothing_else():
    block = Block(80, 4.0, 0.0).eval()
    x = torch.randn(2, 16, 16, 80)
    # The segments of Q, K, V once; then K for its softmax and V for its convolution, 4/5 each.
    assert copied_elements(block, x) <= (3 + 2 * 4 / 5) * x.numel()


def test_the_copies_are_counted():
    x = torch.randn(2, 16, 16, 80)
    assert copied_elements(nn.Flatten(), x.permute(0, 3, 1, 2)) == x.numel()
