"""The weight decay that reaches the optimiser."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from gmf_platform.models.backbones import GroupMixFormer
from gmf_platform.models.heads import SemanticFPN
from gmf_platform.tasks import SegmentationTask


@pytest.mark.parametrize(("everything", "decays"), [(False, [0.3, 0.0]), (True, [0.3])])
def test_norms_and_biases_are_decayed_when_asked_for(everything, decays, monkeypatch):
    task = SegmentationTask(
        ["a", "b"],
        backbone=GroupMixFormer("mobile"),
        decode_head=partial(SemanticFPN, fpn_channels=8, channels=8),
        optimizer=partial(torch.optim.AdamW, weight_decay=0.3),
        decay_norms_and_biases=everything,
    )
    monkeypatch.setattr(
        task, "_trainer", SimpleNamespace(estimated_stepping_batches=1, strategy=None)
    )
    groups = task.configure_optimizers()["optimizer"].param_groups
    assert [group["weight_decay"] for group in groups] == decays
    count = sum(len(group["params"]) for group in groups)
    assert count == len(list(task.model.parameters()))
