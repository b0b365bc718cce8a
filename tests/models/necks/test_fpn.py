"""FPN against torchvision's FeaturePyramidNetwork."""

from collections import OrderedDict

import pytest
import torch
from torchvision.ops import FeaturePyramidNetwork

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


@pytest.fixture
def both():
    torch.manual_seed(1)
    ours, theirs = FPN(CHANNELS, channels=16), FeaturePyramidNetwork(list(CHANNELS), 16)
    for pair in zip(ours.lateral_convs, theirs.inner_blocks, strict=True):
        pair[1][0].load_state_dict(pair[0].state_dict())
    for pair in zip(ours.fpn_convs, theirs.layer_blocks, strict=True):
        pair[1][0].load_state_dict(pair[0].state_dict())
    return ours, theirs


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


def test_a_map_too_few_is_refused(both):
    with pytest.raises(ValueError, match="zip"):
        both[0](make_maps(SIZES["halves"])[:3])
