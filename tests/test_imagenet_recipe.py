"""The ImageNet configs against the official code's numbers and timm's scheduler."""

from types import SimpleNamespace

import pytest
import torch
import yaml
from timm.scheduler import CosineLRScheduler

from gmf_platform.cli.arguments import find_config
from gmf_platform.optim import Cosine

IMAGES = 1_281_167

# Base, warm-up and minimum rate, epochs, warm-up epochs: config.py of GroupMixFormer, and Swin's
# swin_base_patch4_window12_384_finetune.yaml.
OFFICIAL = {
    "cls_imagenet": (5e-4, 5e-7, 5e-6, 300, 20),
    "cls_imagenet_384": (2e-5, 2e-8, 2e-7, 30, 5),
}


@pytest.mark.parametrize("global_batch", [512, 2048])
@pytest.mark.parametrize("name", OFFICIAL)
def test_learning_rate_equals_timms(name, global_batch):
    """At iterations all over the run, the rates scaled with the batch as in the official train.py."""
    config = yaml.safe_load(find_config(name).read_text())
    settings = SimpleNamespace(**config["model"]["init_args"])
    base, first, last, epochs, warmup = (
        x * (global_batch / 512 if x < 1 else 1) for x in OFFICIAL[name]
    )
    per_epoch = IMAGES // global_batch  # the official loader drops the last batch
    total = int(epochs * per_epoch)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=base)
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=total,
        lr_min=last,
        warmup_lr_init=first,
        warmup_t=int(warmup * per_epoch),
        t_in_epochs=False,
    )
    rate = settings.optimizer["init_args"]["lr"] * global_batch / settings.lr_for_batch_size
    schedule = Cosine(**settings.schedule["init_args"])
    for step in [*range(0, total, 997), int(warmup * per_epoch), total - 1]:
        scheduler.step_update(step)
        ours = rate * schedule.factor(step, total, steps_per_epoch=per_epoch)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step
    assert config["trainer"]["max_epochs"] == epochs


def test_384_differs_from_224_by_its_own_source_alone():
    """What [swin] does not set is as in the recipe before it."""
    before, after = (yaml.safe_load(find_config(name).read_text()) for name in OFFICIAL)
    changed = {key: value for key, value in flat(after) if dict(flat(before))[key] != value}
    assert set(changed) == {
        "init_from",
        "model.init_args.optimizer.init_args.lr",
        "model.init_args.optimizer.init_args.weight_decay",
        "model.init_args.schedule.init_args.warmup_epochs",
        "data.init_args.image_size",
        "data.init_args.eval_batch_size",
        "trainer.max_epochs",
    }


def flat(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
