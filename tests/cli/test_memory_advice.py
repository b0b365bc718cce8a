"""What a user whose device is full is told to change."""

import inspect
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from datamodules import ADE20K, COCO, ImageNet, MultiTask
from gmf_platform.cli.output import advising_on_memory
from gmf_platform.errors import UserError
from gmf_platform.models.backbones import GroupMixFormer


def advice(data, verb, *, world_size=1, **backbone):
    """The message of a verb that found the device full."""
    small = GroupMixFormer(
        embedding_dims=[20, 40, 60, 80], depths=[1] * 4, mlp_ratios=[2] * 4, **backbone
    )
    experiment = SimpleNamespace(
        trainer=SimpleNamespace(state=SimpleNamespace(fn=verb), world_size=world_size),
        datamodule=data,
        task=SimpleNamespace(model=nn.ModuleDict({"backbone": small})),
    )
    with pytest.raises(UserError) as told, advising_on_memory(experiment):
        raise torch.OutOfMemoryError("no 2 GiB left\nmore")
    return str(told.value)


def keys(data):
    """The settings of a data set."""
    classes = type(data).__mro__
    return {
        name for c in classes if "__init__" in vars(c) for name in inspect.signature(c).parameters
    }


@pytest.mark.parametrize("verb", ["fit", "validate", "predict"])
@pytest.mark.parametrize("make", [ADE20K, COCO, ImageNet])
def test_only_keys_that_the_data_has_are_named(make, verb):
    data = make("set", eval_batch_size=2)
    named = re.findall(r"--data\.(\w+)", advice(data, verb))
    assert named
    assert keys(data).issuperset(named)
    assert ("sliding" in advice(data, verb)) == (make is ADE20K and verb != "fit")


def test_in_training():
    said = advice(COCO("set"), "fit", world_size=2)
    assert said.splitlines() == [
        "out of memory with 8 images per device (no 2 GiB left)",
        "  - fewer at once, same global batch: --data.per_device_batch_size 4",
        "    (the rest is accumulated; batch norm then sees 4 images)",
        "  - less kept for backward: --model.backbone.checkpointing true",
        "  - smaller images: --data.scale; --data.multi_scale, --data.jitter_size if set",
        "  - a smaller network: --model.backbone.variant",
    ]
    said = advice(COCO("set"), "fit", world_size=16, checkpointing=True)
    assert said.startswith("out of memory with 1 image per device")
    assert "per_device_batch_size" not in said
    assert "checkpointing" not in said


def test_in_evaluation_and_prediction():
    data = ImageNet("set", eval_batch_size=100)
    for verb in ("test", "predict"):
        assert "100 images per device" in advice(data, verb)
        assert "--data.eval_batch_size 50" in advice(data, verb)
    assert "eval_batch_size" not in advice(ImageNet("set", eval_batch_size=1), "predict")


def test_in_prediction_of_several_tasks():
    """All tasks see the same images."""
    data = MultiTask({"seg": ADE20K("set")}, eval_batch_size=4)
    assert advice(data, "predict").splitlines()[:3] == [
        "out of memory with 4 images per device (no 2 GiB left)",
        "  - fewer at once: --data.eval_batch_size 2",
        "  - smaller images: --data.joint_size",
    ]
    assert "--data.tasks.seg.per_device_batch_size" in advice(data, "validate")
