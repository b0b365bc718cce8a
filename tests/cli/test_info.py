import re

import pytest
import torch

from gmf_platform.models.backbones import GroupMixFormer
from gmf_platform.models.heads import FCNHead, UPerNet


def numbers(out):
    """The table of parts, as numbers."""
    rows = re.findall(r"^(\w+) +([\d,]+)$", out, re.MULTILINE)
    return {name: int(count.replace(",", "")) for name, count in rows}


def test_parameters_are_those_of_the_parts(gmf, sample_ade20k):
    result = gmf("info", "--config", "seg_ade20k", "--data.root", sample_ade20k)
    assert result.code == 0, result.err
    found = numbers(result.out)
    with torch.device("meta"):
        backbone = GroupMixFormer("tiny")
        parts = {
            "backbone": backbone,
            "decode_head": UPerNet(backbone.channels, 8),
            "auxiliary_head": FCNHead(backbone.channels, 8),
        }
    expected = {n: sum(p.numel() for p in part.parameters()) for n, part in parts.items()}
    assert found == expected | {"all": sum(expected.values())}


def test_shapes_and_operations(gmf, base):
    at_64 = gmf("info", *base, "--size", "64").out
    assert "stride 4   (20, 16, 16)" in at_64
    assert "stride 32  (80, 2, 2)" in at_64
    wide = gmf("info", *base, "--size", "64", "128").out
    assert "at 64 x 128:" in wide
    assert "stride 4   (20, 16, 32)" in wide
    odd = gmf("info", *base, "--size", "97", "203").out
    assert "stride 32  (80, 4, 7)" in odd


def test_operations_of_a_convolution(gmf, base, modules, tmp_path):
    """A network whose multiply-adds can be counted by hand."""
    source = """
from torch import nn

class Patches(nn.Module):
    channels, strides = (10,), (4,)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 4, stride=4)

    def forward(self, images):
        return [self.conv(images)]

class Pixels(nn.Module):
    def __init__(self, in_channels, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(in_channels[0], num_classes, 1)

    def forward(self, features):
        return self.conv(features[0])
"""
    modules("patches", source)
    (tmp_path / "config.yaml").write_text(
        "model:\n  class_path: gmf_platform.tasks.SegmentationTask\n"
        "  init_args:\n"
        "    backbone: {class_path: patches.Patches}\n"
        "    decode_head: {class_path: patches.Pixels}\n"
        "data:\n  class_path: datamodules.ADE20K\n"
        "  init_args: {root: none, classes: [one, two]}\n"
    )
    result = gmf("info", "--config", "config.yaml", "--size", "2000", "4000")
    assert result.code == 0, result.err
    places = 500 * 1000
    operations = places * (3 * 16 * 10 + 10 * 2)
    assert f"at 2000 x 4000: {operations / 1e9:.2f} GFLOPs" in result.out
    assert numbers(result.out) == {"backbone": 490, "decode_head": 22, "all": 512}


def test_of_a_run(trained, gmf):
    result = gmf("info", "--run", trained.path)
    assert result.code == 0, result.err
    state = torch.load(trained.best, weights_only=True)["state_dict"]
    buffers = ("running_mean", "running_var", "num_batches_tracked", "mean", "std")
    parameters = (t.numel() for name, t in state.items() if not name.endswith(buffers))
    assert numbers(result.out)["all"] == sum(parameters)


@pytest.mark.parametrize("size", [("32",), ("64", "32"), ("64", "64", "64"), ("big",)])
def test_wrong_size(gmf, base, size):
    result = gmf("info", *base, "--size", *size)
    assert result.code == 2
    assert "--size" in result.err
