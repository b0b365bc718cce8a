import pytest
import torch
from timm.loss import LabelSmoothingCrossEntropy
from timm.loss import SoftTargetCrossEntropy as TimmSoft
from torch.nn import functional as F

from gmf_platform.errors import UserError
from gmf_platform.models.losses import SoftTargetCrossEntropy


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 9, generator=generator)
    return logits, torch.randn(6, 9, generator=generator).softmax(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_targets_equal_timms(batch, smoothing):
    logits, targets = batch
    ours = SoftTargetCrossEntropy(label_smoothing=smoothing)(logits, targets)
    theirs = TimmSoft()(logits, (1 - smoothing) * targets + smoothing / 9)
    torch.testing.assert_close(ours, theirs)


def test_labels_equal_timms(batch):
    logits, labels = batch[0], torch.tensor([0, 8, 3, 3, 1, 5])
    ours = SoftTargetCrossEntropy(label_smoothing=0.1)(logits, labels)
    torch.testing.assert_close(ours, LabelSmoothingCrossEntropy(0.1)(logits, labels))
    plain = SoftTargetCrossEntropy()(logits, labels)
    torch.testing.assert_close(plain, F.cross_entropy(logits, labels))


def test_parts_add_up_to_the_whole_with_weights(batch):
    logits, labels = batch[0], torch.tensor([0, 8, 3, 3, 1, 5])
    weights = [1.0 + i for i in range(9)]
    loss = SoftTargetCrossEntropy(class_weights=weights)
    parts = [loss(logits[i : i + 2], labels[i : i + 2]) for i in (0, 2, 4)]
    torch.testing.assert_close(torch.stack(parts).mean(), loss(logits, labels))
    by_hand = F.cross_entropy(logits, labels, reduction="none") * (1 + labels)
    torch.testing.assert_close(loss(logits, labels), by_hand.mean())
    assert not loss.state_dict()  # a setting


def test_half_precision_is_computed_in_float32(batch):
    logits, targets = batch
    loss = SoftTargetCrossEntropy()(logits.bfloat16(), targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, TimmSoft()(logits.bfloat16().float(), targets))


def test_wrong_settings(batch):
    with pytest.raises(UserError, match=r"label_smoothing: 1\.0"):
        SoftTargetCrossEntropy(label_smoothing=1.0)
    with pytest.raises(UserError, match="2 weights for 9 classes"):
        SoftTargetCrossEntropy(class_weights=[1.0, 2.0])(*batch)
