"""What the segmentation heads are built of, against PyTorch's own functions."""

import pytest
import torch
import torch.nn.functional as F

from gmf_platform.errors import UserError
from gmf_platform.models.heads import FCNHead
from gmf_platform.models.heads.blocks import ConvNormAct, PixelClassifier, resize_to


def test_convolution_norm_relu(relative_error):
    block = ConvNormAct(4, 6, 3)
    x = torch.randn(2, 4, 5, 7)
    convolved = F.conv2d(x, block.conv.weight, padding=1)
    expected = F.batch_norm(convolved, None, None, training=True).relu()
    assert relative_error(block(x), expected) < 1e-6


def test_starts_as_mmcv_and_mmsegmentation_do():
    torch.manual_seed(0)
    fan_out = 64 * 3 * 3
    std = ConvNormAct(32, 64, 3).conv.weight.std().item()
    assert std == pytest.approx((2 / fan_out) ** 0.5, rel=0.03)
    classifier = PixelClassifier(256, 150, 0.1)
    assert classifier.conv_seg.weight.std().item() == pytest.approx(0.01, rel=0.03)
    assert not classifier.conv_seg.bias.any()


def test_resize_does_not_align_corners():
    row = torch.tensor([0.0, 4.0]).view(1, 1, 1, 2)
    # Centres of the four new pixels lie at -1/4, 1/4, 3/4 and 5/4 of the old ones.
    assert resize_to(row, torch.empty(1, 1, 1, 4)).flatten().tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"channels": 0}, "FCNHead: channels: expected 1 or more, not 0"),
        ({"channels": 8, "dropout": 1.5}, "FCNHead: dropout 1.5 is no chance from 0 to 1"),
    ],
)
def test_wrong_settings(settings, said):
    with pytest.raises(UserError, match=said):
        FCNHead([8, 8, 8, 8], 3, **settings)
