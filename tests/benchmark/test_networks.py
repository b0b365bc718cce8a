import sys

import pytest
import torch

from gmf_platform.benchmark.networks import build_network, feature_maps
from gmf_platform.errors import UserError

NAMES = ["ours", "checkpointing", "timm:resnet18", "timm:swin_tiny_patch4_window7_224"]


@pytest.mark.parametrize("name", NAMES)
def test_feature_maps(name):
    network = build_network(name, "mobile", size=96).eval()
    with torch.inference_mode():
        maps = feature_maps(network, torch.zeros(1, 3, 96, 96))
    assert len(maps) >= 4
    assert all(isinstance(m, torch.Tensor) and m.ndim == 4 for m in maps)


def test_birder_has_as_many_parameters():
    """It adds biases to the stem's two convolutions, 16 and 32 of the mobile variant's channels."""
    pytest.importorskip("birder")
    ours, theirs = (build_network(name, "mobile", size=64) for name in ("ours", "birder"))
    count = [sum(p.numel() for p in network.parameters()) for network in (ours, theirs)]
    assert abs(count[0] - count[1]) < 0.01 * count[0]
    with torch.inference_mode():
        maps = [feature_maps(n.eval(), torch.zeros(1, 3, 64, 64)) for n in (ours, theirs)]
    assert [m.shape for m in maps[0]] == [m.shape for m in maps[1]]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mmseg", "timm:NAME"),
        ("timm:", "timm:NAME"),
        ("timm:swine_tiny", "no such model"),
        ("official:nowhere.py", "no such file"),
    ],
)
def test_wrong_names(name, said):
    with pytest.raises(UserError, match=said):
        build_network(name, "mobile", size=64)


def test_birder_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "birder", None)
    monkeypatch.setitem(sys.modules, "birder.model_registry", None)
    with pytest.raises(UserError, match=r"pip install 'gmf_platform\[bench\]'"):
        build_network("birder", "mobile", size=64)
