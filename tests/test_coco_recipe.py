"""The COCO configs against the recipes that they name."""

from dataclasses import fields, is_dataclass

import pytest
import torch
import yaml

from gmf_platform.cli.arguments import VerbParser, find_config, parse_arguments
from gmf_platform.cli.experiment import Experiment
from gmf_platform.models.heads import CascadeMaskRCNN, FasterRCNN, MaskRCNN, RetinaNet
from gmf_platform.optim import MultiStep, parameter_groups

IMAGES = 117_266  # of train2017, those with objects
HEADS = {
    "det_coco_retinanet": RetinaNet,
    "det_coco_faster_rcnn": FasterRCNN,
    "det_coco_mask_rcnn": MaskRCNN,
    "det_coco_cascade_mask_rcnn": CascadeMaskRCNN,
}
# In millions, for 80 classes and the tiny backbone of 10.7: the same heads around Swin-T (27.5)
# have the 47.8 and 85.6 of Swin's README, and around MPViT-S (22.9) the 32.2 of MPViT's.
PARAMETERS = {
    "det_coco_retinanet": 20.2,
    "det_coco_mask_rcnn": 30.8,
    "det_coco_cascade_mask_rcnn": 68.6,
}


@pytest.fixture
def build(tmp_path, sample_coco):
    """Build a config's experiment without memory for its weights."""

    def make(*configs):
        words = [word for config in configs for word in ("--config", config)]
        argv = [*words, "--data.root", str(sample_coco), "--init_from", "none"]
        experiment = Experiment(parse_arguments(VerbParser("fit", ""), argv))
        with torch.device("meta"):
            experiment.build(tmp_path, quiet=True)
        return experiment

    return make


def flat(value, path=""):
    """Numbers and words of a module's settings, by their place."""
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{path}.{key}").items()}
    return {path: value} if isinstance(value, int | float | str | None) else {}


def settings(module):
    return {
        place: value
        for name, part in module.named_modules()
        for place, value in flat({k: v for k, v in vars(part).items() if k[0] != "_"}, name).items()
    }


@pytest.mark.parametrize("name", HEADS)
def test_what_a_config_spells_out_is_what_its_head_has_by_itself(build, name):
    """The heads' own tests hold their settings against the sources."""
    task = build(name).task
    channels = task.model.backbone.channels
    with torch.device("meta"):
        plain = settings(HEADS[name](channels, len(task.class_names)).train(task.training))
    ours = settings(task.model.head)
    assert len(ours) > 100
    assert {k: v for k, v in ours.items() if not isinstance(v, float)} == {
        k: v for k, v in plain.items() if not isinstance(v, float)
    }
    floats = {k: v for k, v in plain.items() if isinstance(v, float)}
    assert {k: ours[k] for k in floats} == pytest.approx(floats, rel=1e-6)


@pytest.mark.parametrize(("name", "millions"), PARAMETERS.items())
def test_number_of_parameters(build, name, millions):
    backbone = build(name).task.model.backbone
    with torch.device("meta"):
        head = HEADS[name](backbone.channels, 80)
    count = sum(p.numel() for part in (backbone, head) for p in part.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.01)


def mmcv_rate(step, per_epoch, base, milestones):
    """mmcv's StepLrUpdaterHook with linear warm-up, of 500 steps from a thousandth."""
    rate = base * 0.1 ** sum(step // per_epoch >= m for m in milestones)
    return rate * (1 - (1 - step / 500) * (1 - 0.001)) if step < 500 else rate


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize(
    ("overlay", "epochs", "milestones"),
    [(None, 12, (8, 11)), ("schedule/det_1x", 12, (8, 11)), ("schedule/det_3x", 36, (27, 33))],
)
def test_learning_rate(build, name, overlay, epochs, milestones):
    experiment = build(*filter(None, (name, overlay)))
    schedule = experiment.task.schedule
    assert isinstance(schedule, MultiStep)
    assert experiment.config.trainer.max_epochs == epochs
    per_epoch = IMAGES // 16
    base = experiment.config.model.init_args.optimizer.init_args.lr
    edges = {m * per_epoch + i for m in milestones for i in (-1, 0, 1)}
    for step in sorted({0, 1, 250, 499, 500, epochs * per_epoch - 1} | edges):
        ours = base * schedule.factor(step, epochs * per_epoch, steps_per_epoch=per_epoch)
        assert ours == pytest.approx(mmcv_rate(step, per_epoch, 1e-4, milestones)), step


def test_3x_is_the_recipe_of_swin_and_pvt(build):
    transform = build("det_coco_mask_rcnn", "schedule/det_3x").datamodule.transform
    assert list(transform.shorts) == list(range(480, 801, 32))
    assert transform.long == 1333
    assert transform.crop_branch
    plain = build("det_coco_mask_rcnn", "schedule/det_3x", "schedule/det_1x").datamodule.transform
    assert (list(plain.shorts), plain.long, plain.crop_branch) == ([800], 1333, False)


@pytest.mark.parametrize("name", HEADS)
def test_weight_decay(build, name):
    experiment = build(name)
    task, keys = experiment.task, experiment.config.model.init_args
    decay = keys.optimizer.init_args.weight_decay
    groups = parameter_groups(task.model, decay_norms_and_biases=task.decay_norms_and_biases)
    decays = [group.get("weight_decay", decay) for group in groups]
    assert decays == ([1e-4] if name == "det_coco_retinanet" else [0.05, 0.0])


@pytest.mark.parametrize("name", HEADS)
def test_masks_are_read_and_watched_where_they_are_learned(build, name):
    experiment = build(name)
    with_masks = "mask" in name
    assert experiment.task.with_masks == experiment.datamodule.with_masks == with_masks
    config = yaml.safe_load(find_config(name).read_text())
    assert config["checkpoint"]["monitor"] == ("val/mask_ap" if with_masks else "val/box_ap")
    assert experiment.datamodule.global_batch_size == 16
    assert experiment.task.norm == "sync"
    assert config["trainer"]["gradient_clip_val"] is None
