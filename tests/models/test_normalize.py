"""Normalising against torchvision's, and the padding."""

import pytest
import torch
from torchvision.transforms.v2 import functional as tvf

from gmf_platform.models.normalize import Normalize

SIZES = torch.tensor([[20, 30], [13, 30], [20, 7]])


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 3, 20, 30), generator=generator, dtype=torch.uint8)


def test_equals_torchvision(images):
    floats = tvf.to_dtype(images, torch.float32, scale=True)
    # The same constants as fractions, as torchvision's own presets have them.
    expected = tvf.normalize(floats, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(Normalize()(images), expected, atol=1e-5, rtol=0)


def test_other_constants(images):
    ours = Normalize(mean=(0, 0, 0), std=(255, 255, 255))(images)
    torch.testing.assert_close(ours, tvf.to_dtype(images, torch.float32, scale=True))


def test_padding_is_exactly_zero_afterwards(images):
    whole, padded = Normalize()(images), Normalize()(images, SIZES)
    for i, (height, width) in enumerate(SIZES.tolist()):
        assert torch.equal(padded[i, :, :height, :width], whole[i, :, :height, :width])
        assert not padded[i, :, height:].any()
        assert not padded[i, :, :, width:].any()


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("sizes", [None, SIZES])
def test_memory_format_stays(images, memory, sizes):
    result = Normalize()(images.contiguous(memory_format=memory), sizes)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=memory)


def test_constants_stay_out_of_checkpoints():
    assert not Normalize().state_dict()
