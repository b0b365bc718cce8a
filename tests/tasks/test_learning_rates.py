"""Rates, schedules and frozen stages as a task hands them to its optimiser."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from gmf_platform.errors import UserError
from gmf_platform.models.backbones import GroupMixFormer
from gmf_platform.models.heads import SemanticFPN
from gmf_platform.optim import Cosine, Polynomial
from gmf_platform.tasks import SegmentationTask

LAYERS = 5  # beside the stem


def make_task(monkeypatch, datamodule=None, **options):
    task = SegmentationTask(
        ["a", "b"],
        backbone=GroupMixFormer(
            embedding_dims=(10, 10, 20, 20), depths=(1, 1, 2, 1), mlp_ratios=(1,) * 4
        ),
        decode_head=partial(SemanticFPN, fpn_channels=8, channels=8),
        optimizer=partial(torch.optim.SGD, lr=0.5),
        **options,
    )
    trainer = SimpleNamespace(estimated_stepping_batches=40, datamodule=datamodule, strategy=None)
    monkeypatch.setattr(task, "_trainer", trainer)
    return task


def rates_after(task, steps):
    """The rate of each group after some steps of the task's own scheduler, by name."""
    made = task.configure_optimizers()
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
    return {group["name"]: group["lr"] for group in optimizer.param_groups}


@pytest.mark.parametrize("steps", [0, 1, 20])
def test_factors_hold_at_each_step(monkeypatch, steps):
    schedule = Polynomial(warmup_steps=5)
    task = make_task(
        monkeypatch, schedule=schedule, layer_decay=0.8, lr_factors={"decode_head": 3.0}
    )
    rates = rates_after(task, steps)
    base = 0.5 * schedule.factor(steps, 40)
    for layer in range(LAYERS + 1):
        expected = base * 0.8 ** (LAYERS + 1 - layer)
        assert rates[f"layer_{layer:02d}/decay"] == pytest.approx(expected)
        assert rates[f"layer_{layer:02d}/no_decay"] == pytest.approx(expected)
    assert rates["decode_head/decay"] == pytest.approx(3 * base)


def test_the_global_batch_scales_all_rates(monkeypatch):
    data = SimpleNamespace(global_batch_size=8, steps_per_epoch=lambda: 4.0)
    schedule = Polynomial(warmup_steps=0)
    task = make_task(
        monkeypatch, data, schedule=schedule, lr_for_batch_size=32, lr_factors={"backbone": 0.1}
    )
    rates = rates_after(task, 0)
    assert rates["decay"] == pytest.approx(0.5 / 4)
    assert rates["backbone/decay"] == pytest.approx(0.5 / 40)


def test_the_data_tells_how_long_an_epoch_is(monkeypatch):
    data = SimpleNamespace(steps_per_epoch=lambda: 4.0)
    task = make_task(monkeypatch, data, schedule=Cosine(warmup_epochs=2, warmup_factor=0.0))
    assert rates_after(task, 4)["decay"] == pytest.approx(0.5 * 4 / 8)
    with pytest.raises(UserError, match="steps_per_epoch"):
        make_task(monkeypatch, schedule=Cosine(warmup_epochs=2)).configure_optimizers()


@pytest.mark.parametrize("count", [0, 2, 4])
def test_frozen_stages_are_not_in_the_optimiser(monkeypatch, count):
    task = make_task(monkeypatch, frozen_stages=count)
    optimizer = task.configure_optimizers()["optimizer"]
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    backbone = task.model.backbone
    stages = [
        [backbone.patch_embed_layers[i], backbone.groupmixformer_backbone[i]] for i in range(4)
    ]
    stages[0].append(backbone.conv_stem)
    for number, parts in enumerate(stages):
        inside = {id(p) for part in parts for p in part.parameters()}
        assert inside.isdisjoint(trained) if number < count else inside <= trained
    assert {id(p) for p in task.model.decode_head.parameters()} <= trained


def test_frozen_stages_stay_in_evaluation_mode(monkeypatch):
    task = make_task(monkeypatch, frozen_stages=4)
    for mode in (True, False, True):
        task.train(mode)
        assert task.model.decode_head.training == mode
        blocks = task.model.backbone.groupmixformer_backbone[2].gma_stage
        assert not any(module.training for module in blocks.modules() if module is not blocks)


def test_layer_decay_begins_behind_frozen_stages(monkeypatch):
    rates = rates_after(make_task(monkeypatch, layer_decay=0.8, frozen_stages=2), 0)
    layers = {name.partition("/")[0] for name in rates if name.startswith("layer")}
    assert layers == {"layer_03", "layer_04", "layer_05"}


def test_more_stages_than_there_are(monkeypatch):
    with pytest.raises(UserError, match="frozen_stages: 5"):
        make_task(monkeypatch, frozen_stages=5)


def test_gradients_are_freed_behind_the_step(monkeypatch):
    task = make_task(monkeypatch)
    optimizer = task.configure_optimizers()["optimizer"]
    weight = next(task.model.parameters())
    before = weight.detach().clone()
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert not torch.equal(weight, before)
    assert weight.grad is None
