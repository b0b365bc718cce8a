"""The classification head against its definition; test_groupmixformer has the authors' numbers."""

import torch
import torch.nn.functional as F

from gmf_platform.models.heads import ClassificationHead


def test_norm_then_mean_then_linear(relative_error):
    torch.manual_seed(0)
    head = ClassificationHead((10, 20), 7)
    x = torch.randn(4, 20, 3, 5) * 3 + 1
    pooled = F.batch_norm(x, None, None, training=True).mean((2, 3))
    assert relative_error(head([x[:, :10], x]), F.linear(pooled, head.head.weight)) < 1e-5


def test_state_has_the_authors_names():
    names = set(ClassificationHead((10,), 7).state_dict())
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert names == {"head.weight", "head.bias", *(f"norm4.{name}" for name in norm)}
