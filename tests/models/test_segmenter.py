"""The segmenter: what its parts are given."""

import pytest
import torch

from gmf_platform.models.backbones import GroupMixFormer
from gmf_platform.models.heads import FCNHead, UPerNet
from gmf_platform.models.normalize import Normalize
from gmf_platform.models.segmenter import Segmenter


@pytest.fixture
def parts():
    torch.manual_seed(0)
    backbone = GroupMixFormer(embedding_dims=(10, 10, 20, 20), depths=(1,) * 4, drop_path=0.0)
    decode = UPerNet(backbone.channels, 5, channels=8, dropout=0.0)
    return backbone, decode, FCNHead(backbone.channels, 5, channels=8, dropout=0.0)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, 70, 97), generator=generator, dtype=torch.uint8)


def test_training_gives_both_heads(parts, images):
    output = Segmenter(*parts).train()(images)
    assert output.logits.shape == (2, 5, 18, 25)
    assert output.auxiliary.shape == (2, 5, 5, 7)


def test_evaluation_skips_the_auxiliary_head(parts, images):
    backbone, decode, auxiliary = parts
    auxiliary.forward = None  # would fail if it were called
    output = Segmenter(backbone, decode, auxiliary).eval()(images)
    assert output.auxiliary is None
    assert output.logits.shape == (2, 5, 18, 25)


def test_one_head_alone(parts, images):
    assert Segmenter(*parts[:2]).train()(images).auxiliary is None


@torch.no_grad()
def test_is_its_parts_in_a_row(parts, images):
    backbone, decode, auxiliary = (part.eval() for part in parts)
    expected = decode(backbone(Normalize()(images)))
    assert torch.equal(Segmenter(backbone, decode, auxiliary).eval()(images).logits, expected)


@torch.no_grad()
def test_what_stands_in_the_padding_does_not_matter(parts, images):
    model = Segmenter(*parts).eval()
    sizes = torch.tensor([[70, 80], [64, 97]])
    other = images.clone()
    other[0, :, :, 80:] = 255
    other[1, :, 64:] = 255
    assert torch.equal(model(images, sizes).logits, model(other, sizes).logits)
    assert not torch.equal(model(images).logits, model(other).logits)


def test_names_of_the_parts(parts):
    prefixes = {name.split(".")[0] for name in Segmenter(*parts).state_dict()}
    assert prefixes == {"backbone", "decode_head", "auxiliary_head"}
