"""UPerNet against numbers of mmsegmentation's UPerHead."""

import pytest
import torch

from gmf_platform.errors import UserError
from gmf_platform.models.heads import UPerNet


@pytest.fixture
def reference(read_reference):
    return read_reference("upernet_head")


def build(reference):
    channels = reference.setting("channels")
    head = UPerNet(reference.setting("in_channels"), 7, channels=channels, dropout=0.0)
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
    head = UPerNet((4, 6, 8), 5, channels=8, pool_scales=(1, 3)).eval()
    maps = [torch.randn(1, n, *size) for n, size in ((4, (25, 33)), (6, (13, 17)), (8, (7, 9)))]
    assert head(maps).shape == (1, 5, 25, 33)


def test_dropout_drops_whole_channels_in_training_only(reference):
    head, features = build(reference)
    head.dropout.p = 0.5
    assert torch.equal(head.eval()(features), head(features))
    kept = head.train().dropout(torch.ones(8, 32, 4, 4)).flatten(2)
    assert torch.equal(kept.amin(2), kept.amax(2))
    assert set(kept.unique().tolist()) == {0, 2}
    assert not torch.equal(head(features), head(features))


def test_a_training_batch_of_one_is_refused():
    head = UPerNet((4, 6), 5, channels=8)
    with pytest.raises(UserError, match="norm: frozen"):
        head([torch.randn(1, 4, 8, 8), torch.randn(1, 6, 4, 4)])
