"""Checkpoints of small networks as a run saves them, without a run."""

from copy import deepcopy

import pytest
import torch
import yaml
from torch import nn

from gmf_platform.models.backbones import GroupMixFormer
from gmf_platform.models.heads import MaskRCNN, RetinaNet, UPerNet
from gmf_platform.models.norm import BatchNorm
from gmf_platform.tasks import ClassificationTask, DetectionTask, MultiTask, SegmentationTask

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
        "data": part("datamodules.COCO", root="/none/coco", classes=None, scale=[240, 160]),
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


def joint_config():
    """One backbone with the networks above, each with statistics of its own in its norms."""
    kinds = {"cls": "classification", "seg": "segmentation", "det": "detection"}
    single = {name: deepcopy(CONFIGS[kind]) for name, kind in kinds.items()}
    for config in single.values():
        del config["model"]["init_args"]["backbone"]
    return {
        "model": part(
            "gmf_platform.tasks.MultiTask",
            backbone=BACKBONE,
            tasks={name: config["model"] for name, config in single.items()},
            norm_statistics="per_task",
        ),
        "data": part(
            "datamodules.MultiTask",
            tasks={name: config["data"] for name, config in single.items()},
            joint_size=[128, 96],
        ),
    }


CONFIGS["joint"] = joint_config()


def make_joint():
    """The tasks below around one backbone, whose norms differ from task to task."""
    single = {
        "cls": make_task("classification"),
        "seg": make_task("segmentation"),
        "det": make_task("detection"),
    }

    def factory(name):
        def make(class_names, *, backbone, **_):
            single[name].model.backbone = backbone
            return single[name]

        return make

    backbone = single["cls"].model.backbone
    classes = [f"{name}/{label}" for name in single for label in CLASSES]
    tasks = {name: factory(name) for name in single}
    task = MultiTask(classes, backbone=backbone, tasks=tasks, norm_statistics="per_task")
    for norm in (part for part in backbone.modules() if isinstance(part, BatchNorm)):
        for number, name in enumerate(single):
            norm.get_buffer(f"running_var_{name}").mul_(1 + number)
    return task.eval().requires_grad_(False)


def make_task(kind):
    """A task whose untrained heads are made to find something, differing from place to place."""
    if kind == "joint":
        return make_joint()
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
        facts = {
            "class_names": task.class_names,
            "config": yaml.safe_dump(CONFIGS[kind], sort_keys=False),
        } | more
        if kind == "joint":
            facts["tasks"] = {name: part.facts(None) for name, part in task.parts()}
        path = tmp_path / f"{kind}.ckpt"
        state = {f"model.{name}": value for name, value in task.model.state_dict().items()}
        torch.save({"state_dict": state, "global_step": 7, "gmf_platform": facts}, path)
        return task, path

    return write


@pytest.fixture(scope="session")
def tasks():
    """Make a task of a kind: ``tasks("segmentation")``."""
    return make_task
