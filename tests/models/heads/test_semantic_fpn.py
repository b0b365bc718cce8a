"""Semantic FPN against numbers of mmsegmentation's FPNHead."""

import pytest
import torch

from gmf_platform.models.backbones import GroupMixFormer
from gmf_platform.models.heads import SemanticFPN, SemanticFPNHead


@pytest.fixture
def reference(read_reference):
    return read_reference("semantic_fpn_head")


def build(reference):
    channels = reference.setting("channels")
    head = SemanticFPNHead(reference.setting("in_channels"), 7, channels=channels, dropout=0.0)
    head.load_state_dict(reference.group("weights/"))  # strict: the names are mmsegmentation's
    return head, [reference[f"input/feature_{i}"].requires_grad_() for i in range(4)]


def test_logits_of_the_reference(reference):
    head, features = build(reference)
    assert reference.error("eval/logits", head.eval()(features)) < 3e-5


def test_training_of_the_reference(reference):
    head, features = build(reference)
    logits = head(features)
    assert reference.error("train/logits", logits) < 3e-5
    logits.square().mean().backward()
    for i, feature in enumerate(features):
        assert reference.error(f"grad/input_{i}", feature.grad) < 3e-5
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_odd_sizes_of_maps():
    head = SemanticFPN((4, 6, 8), 5, fpn_channels=8, channels=8).eval()
    maps = [torch.randn(1, n, *size) for n, size in ((4, (25, 33)), (6, (13, 17)), (8, (7, 9)))]
    assert head(maps).shape == (1, 5, 25, 33)


def test_neck_feeds_head(reference, relative_error):
    torch.manual_seed(0)
    whole = SemanticFPN((4, 6, 8, 10), 7, fpn_channels=32, channels=16, dropout=0.0)
    whole.head.load_state_dict(reference.group("weights/"))
    sizes = ((24, 40), (12, 20), (6, 10), (3, 5))
    maps = [torch.randn(2, n, *size) for n, size in zip((4, 6, 8, 10), sizes, strict=True)]
    head, _ = build(reference)
    assert relative_error(whole.eval()(maps), head.eval()(whole.neck(maps))) == 0


@pytest.mark.parametrize(
    ("variant", "millions"), [("mobile", 9.7), ("tiny", 14.9), ("small", 26.3), ("base", 49.7)]
)
def test_parameters_with_groupmixformer(variant, millions):
    """FPN and head formulas that reproduce published sizes of other backbones' Semantic FPN."""
    with torch.device("meta"):
        backbone = GroupMixFormer(variant)
        head = SemanticFPN(backbone.channels, 150)
    count = sum(p.numel() for part in (backbone, head) for p in part.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.01)
