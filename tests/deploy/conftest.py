"""Checkpoints of small networks as a run saves them, without a run."""

import pytest
import torch
import yaml
from torch import nn

from gmf_platform.models.backbones import GroupMixFormer
from gmf_platform.models.heads import MaskRCNN, RetinaNet, UPerNet
from gmf_platform.tasks import ClassificationTask, DetectionTask, SegmentationTask

SMALL = {"embedding_dims": [20, 40, 60, 80], "depths": [1, 1, 1, 1], "mlp_ratios": [2, 2, 2, 2]}
BACKBONE = {"class_path": "gmf_platform.models.backbones.GroupMixFormer", "init_args": SMALL}
CLASSES = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]


def part(class_path, **init_args):
    return {"class_path": class_path, "init_args": init_args}


def heads(name, **settings):
    return part(f"gmf_platform.models.heads.{name}", **settings)


CONFIGS = {
    "classification": {
        "model": part("gmf_platform.tasks.ClassificationTask", backbone=BACKBONE),
        "data": part("datamodules.ImageNet", root="/none/imagenet", image_size=64, classes=None),
    },
    "segmentation": {
        "model": part(
            "gmf_platform.tasks.SegmentationTask",
            backbone=BACKBONE,
            decode_head=heads("UPerNet", channels=16),
        ),
        "data": part("datamodules.ADE20K", root="/none/ade", classes=CLASSES, scale=[256, 64]),
    },
    "detection": {
        "model": part(
            "gmf_platform.tasks.DetectionTask",
            backbone=BACKBONE,
            head=heads("RetinaNet", channels=16),
        ),
        "data": part("datamodules.COCO", root="/none/coco", classes=None, scale=[120, 80]),
    },
    "masks": {
        "model": part(
            "gmf_platform.tasks.DetectionTask",
            backbone=BACKBONE,
            head=heads("MaskRCNN", channels=16, width=16),
        ),
        "data": part("datamodules.COCO", root="/none/coco", classes=None, scale=[120, 80]),
    },
}


def make_task(kind):
    """A task whose untrained heads are made to find something, differing from place to place."""
    torch.manual_seed(0)
    backbone = GroupMixFormer(**{name: tuple(value) for name, value in SMALL.items()})
    match kind:
        case "classification":
            task = ClassificationTask(CLASSES, backbone=backbone)
            nn.init.normal_(task.model.head.head.weight)
        case "segmentation":
            task = SegmentationTask(
                CLASSES, backbone=backbone, decode_head=lambda c, k: UPerNet(c, k, channels=16)
            )
            nn.init.normal_(task.model.decode_head.conv_seg.weight)
        case "detection":
            task = DetectionTask(
                CLASSES, backbone=backbone, head=lambda c, k: RetinaNet(c, k, channels=16)
            )
            head = task.model.head
            for tower in (head.class_tower, head.box_tower):
                for layer in tower[:-1:2]:
                    nn.init.kaiming_normal_(layer.weight)
                nn.init.normal_(tower[-1].weight, std=0.3)
            nn.init.constant_(head.class_tower[-1].bias, -2.0)
        case "masks":
            task = DetectionTask(
                CLASSES, backbone=backbone, head=lambda c, k: MaskRCNN(c, k, channels=16, width=16)
            )
            nn.init.normal_(task.model.head.stages[0].head.classes.weight, std=0.3)
    return task.eval().requires_grad_(False)


@pytest.fixture
def save(tmp_path):
    """Save a task of a kind as a run would: ``save("detection")`` gives task and file."""

    def write(kind, **more):
        task = make_task(kind)
        facts = {"class_names": CLASSES, "config": yaml.safe_dump(CONFIGS[kind])} | more
        path = tmp_path / f"{kind}.ckpt"
        state = {f"model.{name}": value for name, value in task.model.state_dict().items()}
        torch.save({"state_dict": state, "global_step": 7, "gmf_platform": facts}, path)
        return task, path

    return write


@pytest.fixture(scope="session")
def tasks():
    """Make a task of a kind: ``tasks("segmentation")``."""
    return make_task
