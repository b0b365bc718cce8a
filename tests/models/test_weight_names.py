"""Files of other origins, made by their own code where it can be installed."""

import argparse
import re
import sys
from collections import OrderedDict
from types import ModuleType

import pytest
import torch
from torch import nn

from gmf_platform.errors import UserError
from gmf_platform.models.backbones import GroupMixFormer
from gmf_platform.models.heads import ClassificationHead
from gmf_platform.models.weight_names import official_name
from gmf_platform.models.weights import load_weights, read_state_dict

DIMS, DEPTHS, RATIOS = (20, 40, 60, 80), (1, 2, 1, 1), (2, 4, 2, 3)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = GroupMixFormer(embedding_dims=DIMS, depths=DEPTHS, mlp_ratios=RATIOS)
        self.head = ClassificationHead(DIMS, 10)

    def forward(self, images):
        return self.head(self.backbone(images))


def official_names(model):
    names = (re.sub(r"^(backbone|head)\.", "", name) for name in model.state_dict())
    return dict(zip(names, model.state_dict().values(), strict=True))


def test_birder_weights_give_birders_outputs(tmp_path):
    birder = pytest.importorskip("birder.net.groupmixformer", reason="birder is an extra (bench)")
    config = {
        "embed_dims": list(DIMS),
        "depths": list(DEPTHS),
        "mlp_ratios": [float(ratio) for ratio in RATIOS],
        "drop_path_rate": 0.0,
    }
    theirs, ours = birder.GroupMixFormer(3, 10, config=config).eval(), Classifier().eval()
    with torch.no_grad():
        for name, buffer in theirs.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 1.5)  # else a swapped statistic would not show
    torch.save({"state": theirs.state_dict(), "model": theirs.state_dict()}, tmp_path / "b.pt")

    report = load_weights(ours, tmp_path / "b.pt")

    assert (report.missing, report.skipped, report.unused) == ((), (), ())
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


def birder_name(name):
    """birder's name of an official one, as printed from birder 0.8.4."""
    name = re.sub(r"^conv_stem\.proj(\d)", lambda m: f"stem.{int(m[1]) - 1}.0", name)
    name = re.sub(r"^conv_stem\.norm(\d)", lambda m: f"stem.{int(m[1]) - 1}.1", name)
    name = re.sub(
        r"^patch_embed_layers\.(\d)", lambda m: f"body.stage{int(m[1]) + 1}.patch_embed", name
    )
    name = re.sub(
        r"^groupmixformer_backbone\.(\d)\.gma_stage",
        lambda m: f"body.stage{int(m[1]) + 1}.gma_blocks",
        name,
    )
    name = name.replace(".att.", ".attn.").replace(".mlp.fc1.", ".mlp.0.")
    name = name.replace(".mlp.fc2.", ".mlp.3.").replace("norm4.", "features.0.")
    return re.sub(r"^head\.", "classifier.", name)


def test_every_birder_name_is_translated():
    official = list(official_names(Classifier()))
    assert [official_name(birder_name(name)) for name in official] == official
    assert [official_name(name) for name in official] == official
    assert [official_name(f"module.{name}") for name in official] == official


def earlier(weights, *, second_pointwise):
    """The same weights under the names of the authors' earlier files."""
    renamed = {}
    for name, value in weights.items():
        name = name.replace("agg0.conv.conv1", "local_net.0")
        name = name.replace("agg0.conv.pointwise_conv", "local_net.1")
        renamed[name.replace("agg0.norm", "local_net.2")] = value
    if second_pointwise:
        renamed["groupmixformer_backbone.0.gma_stage.0.att.aggregator.local_net.4.weight"] = (
            torch.zeros(4, 4, 1, 1)
        )
    return renamed


def test_earlier_names_are_mapped(tmp_path):
    source, target = Classifier(), Classifier()
    weights = earlier(official_names(source), second_pointwise=False)
    assert any("local_net.0" in name for name in weights)
    torch.save({"model": weights}, tmp_path / "old.pth")
    load_weights(target, tmp_path / "old.pth")
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name


def test_an_earlier_network_with_another_branch_is_refused(tmp_path):
    weights = earlier(official_names(Classifier()), second_pointwise=True)
    torch.save({"model": weights}, tmp_path / "old.pth")
    with pytest.raises(UserError, match=r"earlier network.*local_net\.4"):
        load_weights(Classifier(), tmp_path / "old.pth")
    assert load_weights(Classifier(), tmp_path / "old.pth", allow_partial=True).loaded


def test_a_training_checkpoint_with_a_pickled_config_is_read(tmp_path, monkeypatch):
    """The authors' ckpt_epoch_N.pth hold a yacs CfgNode, which need not be installed here."""
    yacs, config = ModuleType("yacs"), ModuleType("yacs.config")

    class CfgNode(dict):
        def __init__(self, values):
            super().__init__(values)
            self.__dict__["__immutable__"] = True  # as yacs keeps its flags

        def __reduce_ex__(self, protocol):
            return super().__reduce_ex__(2)

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    config.CfgNode = CfgNode
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "yacs", yacs)
        patch.setitem(sys.modules, "yacs.config", config)
        content = {
            "model": official_names(Classifier()),
            "config": CfgNode({"TRAIN": CfgNode({"EPOCHS": 300})}),
            "args": argparse.Namespace(lr=1e-3),
            "optimizer": {"state": {}},
            "epoch": 299,
        }
        torch.save(content, tmp_path / "ckpt_epoch_299.pth")
    assert "yacs" not in sys.modules
    found = read_state_dict(tmp_path / "ckpt_epoch_299.pth")
    assert found.keys() == content["model"].keys()
    assert isinstance(found, dict | OrderedDict)
