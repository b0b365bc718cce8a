"""FPN against torchvision's FeaturePyramidNetwork."""

from collections import OrderedDict

import pytest
import torch
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from gmf_platform.models.necks import FPN

CHANNELS = (6, 8, 10, 12)
SIZES = {
    "halves": ((32, 48), (16, 24), (8, 12), (4, 6)),
    "odd": ((25, 33), (13, 17), (7, 9), (4, 5)),
}


def make_maps(sizes):
    torch.manual_seed(0)
    return [
        torch.randn(2, n, *size, requires_grad=True)
        for n, size in zip(CHANNELS, sizes, strict=True)
    ]


def make_both(*, extra_blocks=None, **arguments):
    torch.manual_seed(1)
    ours = FPN(CHANNELS, channels=16, **arguments)
    theirs = FeaturePyramidNetwork(list(CHANNELS), 16, extra_blocks)
    for pair in zip(ours.lateral_convs, theirs.inner_blocks, strict=True):
        pair[1][0].load_state_dict(pair[0].state_dict())
    for pair in zip(ours.fpn_convs, theirs.layer_blocks, strict=True):
        pair[1][0].load_state_dict(pair[0].state_dict())
    return ours, theirs


@pytest.fixture
def both():
    return make_both()


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_equals_torchvision(both, sizes, relative_error):
    ours, theirs = both
    maps = make_maps(sizes)
    out = ours(maps)
    expected = theirs(OrderedDict((str(i), x) for i, x in enumerate(maps)))
    assert [x.shape[-2:] for x in out] == list(sizes)
    for a, b in zip(out, expected.values(), strict=True):
        assert relative_error(a, b) < 1e-6
    gradients = [
        torch.autograd.grad(sum(x.square().mean() for x in result), maps)
        for result in (out, expected.values())
    ]
    for a, b in zip(*gradients, strict=True):
        assert relative_error(a, b) < 1e-6


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_pooled_level_equals_torchvision(sizes):
    ours, theirs = make_both(extra="pool", extra_blocks=LastLevelMaxPool())
    maps = make_maps(sizes)
    *_, expected = theirs(OrderedDict((str(i), x) for i, x in enumerate(maps))).values()
    out = ours(maps)
    assert len(out) == 5
    assert torch.equal(out[-1], expected)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_convolved_levels_equal_torchvision(sizes, relative_error):
    ours, theirs = make_both(
        extra="convs", relu_between=True, extra_blocks=LastLevelP6P7(CHANNELS[-1], 16)
    )
    for conv, extra in zip(
        ours.extra_convs, (theirs.extra_blocks.p6, theirs.extra_blocks.p7), strict=True
    ):
        extra.load_state_dict(conv.state_dict())
    maps = make_maps(sizes)
    *_, p6, p7 = theirs(OrderedDict((str(i), x) for i, x in enumerate(maps))).values()
    out = ours(maps)
    assert len(out) == 6
    assert relative_error(out[-2], p6) < 1e-6
    assert relative_error(out[-1], p7) < 1e-6

    ours.relu_between = False  # mmdetection's default
    assert relative_error(ours(maps)[-1], ours.extra_convs[1](p6)) < 1e-6
    assert relative_error(ours(maps)[-1], p7) > 0.1


def test_a_map_too_few_is_refused(both):
    with pytest.raises(ValueError, match="zip"):
        both[0](make_maps(SIZES["halves"])[:3])
