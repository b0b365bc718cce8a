"""Training by the task against a plain loop that knows nothing of Lightning."""

from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy as TimmSoft
from timm.utils import accuracy
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from datamodules import BaseDataModule
from gmf_platform.errors import UserError
from gmf_platform.models.backbones import GroupMixFormer
from gmf_platform.models.batch_augment import BatchAugment
from gmf_platform.models.losses import SoftTargetCrossEntropy
from gmf_platform.models.norm import BatchNorm, set_norm_mode
from gmf_platform.optim import Cosine
from gmf_platform.tasks import ClassificationTask

CLASSES = [f"class {i}" for i in range(7)]
LR, DECAY, SEED = 2e-3, 0.05, 7
SMALL = {"embedding_dims": (10, 10, 20, 20), "depths": (1, 1, 1, 2), "mlp_ratios": (2,) * 4}


class Patterns(Dataset):
    """Images of noise whose class is their stripes' direction and colour."""

    def __init__(self, size, seed):
        self.size, self.seed = size, seed

    def __len__(self):
        return self.size

    def __getitem__(self, key):
        index = key.sample if hasattr(key, "sample") else key
        generator = np.random.default_rng((self.seed, index))
        label = index % len(CLASSES)
        image = generator.integers(0, 100, (64, 64, 3))
        stripes = np.arange(64) // 8 % 2 * 120
        image[..., label % 3] += stripes if label > 2 else stripes[:, None]
        return {"image": image.astype(np.uint8), "label": label, "id": f"{label}/{index}.png"}


class PatternData(BaseDataModule):
    """The contract of a classification set, without files."""

    def __init__(self, *, images=70, **settings):
        super().__init__(".", num_workers=0, seed=SEED, **settings)
        self.images = images

    @property
    def class_names(self):
        return CLASSES

    def dataset(self, split, *, training):
        return Patterns(self.images if training else 23, seed=int(training))

    def predict_dataset(self, paths):
        raise NotImplementedError

    def collate(self, samples, *, training):
        pixels = np.stack([sample["image"] for sample in samples])
        size = torch.tensor([[64, 64]] * len(samples))
        return {
            "images": torch.from_numpy(pixels).permute(0, 3, 1, 2),
            "labels": torch.tensor([sample["label"] for sample in samples]),
            "sizes": size,
            "original_sizes": size,
            "ids": [sample["id"] for sample in samples],
        }


def make_data(global_batch_size=8, **settings):
    return PatternData(global_batch_size=global_batch_size, eval_batch_size=4, **settings)


def make_task(*, drop_path=0.1, lr=LR, augment=True, smoothing=0.1, **settings):
    torch.manual_seed(1)
    return ClassificationTask(
        CLASSES,
        backbone=settings.pop("backbone", None) or GroupMixFormer(drop_path=drop_path, **SMALL),
        batch_augment=BatchAugment() if augment else None,
        loss=SoftTargetCrossEntropy(label_smoothing=smoothing),
        optimizer=partial(torch.optim.AdamW, lr=lr, weight_decay=DECAY),
        schedule=Cosine(warmup_steps=3),
        seed=SEED,
        **settings,
    )


class Watch(Callback):
    """Keeps the loss of each batch, and the gradients of the last."""

    def __init__(self):
        self.losses, self.gradients = [], {}

    def on_after_backward(self, trainer, pl_module):
        self.gradients = {name: p.grad for name, p in pl_module.model.named_parameters()}
        self.gradients = {n: None if g is None else g.clone() for n, g in self.gradients.items()}

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        # Lightning hands out the share of an accumulated step.
        self.losses.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)


def make_trainer(steps, **settings):
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    defaults = {"accelerator": "cpu", "devices": 1, "limit_val_batches": 0, "max_epochs": -1}
    settings = defaults | dict.fromkeys(quiet, False) | settings
    return Trainer(max_steps=steps, use_distributed_sampler=False, **settings)


def train(task, data, steps, **settings):
    watch = Watch()
    make_trainer(steps, callbacks=[watch], **settings).fit(task, datamodule=data)
    return watch


def plain_augment(x, labels, augment):
    """Erase and mix as timm writes it, with the numbers that the task draws."""
    change = augment.draw(x)
    noise = torch.randn_like(x)
    for i, (top, bottom, left, right) in enumerate(change.erased.tolist()):
        x[i, :, top:bottom, left:right] = noise[i, :, top:bottom, left:right]
    top, bottom, left, right = change.mixed.tolist()
    kept = float(change.own)
    box = x.flip(0)[..., top:bottom, left:right]
    x[..., top:bottom, left:right] = kept * x[..., top:bottom, left:right] + (1 - kept) * box
    return x, mixup_target(labels, len(CLASSES), change.own_overall, smoothing=0.1)


def plain_training(model, batches, steps, augment):
    """The recipe in one loop of PyTorch."""
    model.train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, weight_decay=DECAY)
    mean = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
    losses = []
    for step, batch in enumerate(batches):
        torch.manual_seed((SEED * 1_000_003 + step) * 1_009)
        rise, fall = 1e-3 + 0.999 * step / 3, 0.5 * (1 + np.cos(np.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = LR * (rise if step < 3 else 0.01 + 0.99 * fall)
        x = (batch["images"].float() - mean) / std
        x, targets = plain_augment(x, batch["labels"], augment)
        loss = TimmSoft()(model.head(model.backbone(x)), targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_equals_a_plain_loop():
    task, data = make_task(), make_data()
    model = deepcopy(task.model)
    ours = train(task, make_data(), 20, gradient_clip_val=5.0).losses
    data.setup("fit")
    theirs = plain_training(model, data.train_loader(steps=20), 20, BatchAugment())
    assert len(ours) == 20
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_repeats_itself_and_depends_on_the_seed():
    first, again, other = (make_task(drop_path=0.0) for _ in range(3))
    other.seed += 1
    losses = [train(task, make_data(), 3).losses for task in (first, again, other)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]  # by what is drawn for the batches alone


def test_smoothing_without_mixing():
    task, data = make_task(augment=False, drop_path=0.0), make_data()
    with torch.no_grad():
        task.model.head.head.weight *= 30  # far from uniform, where smoothing is seen
    model = deepcopy(task.model).train()
    (loss,) = train(task, make_data(), 1).losses
    data.setup("fit")
    batch = next(iter(data.train_loader(steps=1)))
    logits = model(batch["images"])
    expected = F.cross_entropy(logits, batch["labels"], label_smoothing=0.1)
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    assert loss != pytest.approx(F.cross_entropy(logits, batch["labels"]).item(), rel=1e-3)


def test_accumulation_equals_the_whole_batch():
    """Without what is drawn for each part of the batch by itself."""

    def fixed():
        task = make_task(drop_path=0.0, augment=False)
        set_norm_mode(task.model, "frozen")
        return task

    whole = train(fixed(), make_data(8), 4).losses
    parts = train(
        fixed(), make_data(8, per_device_batch_size=4), 4, accumulate_grad_batches=2
    ).losses
    assert np.reshape(parts, (4, 2)).mean(1).tolist() == pytest.approx(whole, rel=1e-5)


def test_every_parameter_gets_a_gradient():
    backbone = GroupMixFormer("mobile", drop_path=0.0)
    watch = train(make_task(backbone=backbone), make_data(4), 1)
    assert [name for name, grad in watch.gradients.items() if grad is None or not grad.any()] == []


def test_learns_64_images_by_heart():
    data = make_data(64, images=64)
    task = make_task(drop_path=0.0, augment=False, smoothing=0.0, lr=1e-2)
    train(task, data, 60)
    batch = next(iter(data.train_loader(steps=1)))
    logits = task.model.eval()(batch["images"])
    assert (logits.argmax(1) == batch["labels"]).all()


# Evaluation


def test_scores_equal_timms():
    task, data = make_task(), make_data()
    train(task, data, 8)
    trainer = make_trainer(1, limit_val_batches=1.0)
    (scores,) = trainer.validate(task, datamodule=data, verbose=False)
    with torch.no_grad():
        batches = list(data.eval_loader("validation"))
        logits = torch.cat([task.model.eval()(batch["images"]) for batch in batches])
    labels = torch.cat([batch["labels"] for batch in batches])
    top1, top5 = accuracy(logits, labels, topk=(1, 5))
    assert len(labels) == 23
    assert scores["val/top1"] == pytest.approx(top1.item() / 100)
    assert scores["val/top5"] == pytest.approx(top5.item() / 100)
    assert scores["val/loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert set(scores) == {"val/top1", "val/top5", "val/macc", "val/loss"}
    assert "class 3" in task.score_table()
    assert not task.top_k.images.any()  # the next pass begins anew
    (tested,) = trainer.test(task, datamodule=data, verbose=False)
    assert tested == {name.replace("val", "test"): value for name, value in scores.items()}


def test_nothing_is_scored_before_an_evaluation():
    assert make_task().score_table() == ""


def test_prediction_and_picture():
    task, data = make_task().eval(), make_data()
    batch = next(iter(data.eval_loader("validation")))
    with torch.no_grad():
        guesses = task.predict_step(batch, 0)
        outputs = task.update_scores(batch)
    assert len(guesses) == 4
    best = outputs["logits"].softmax(1).max(1)
    assert [int(g.labels[0]) for g in guesses] == best.indices.tolist()
    assert [float(g.probabilities[0]) for g in guesses] == pytest.approx(best.values.tolist())
    assert all(len(g.labels) == 5 for g in guesses)
    picture, _ = task.compared(batch, outputs, 2)
    assert picture.shape == (320, 960, 3)
    seen = batch["images"][2].permute(1, 2, 0).numpy()
    assert np.abs(picture[2::5, 2:320:5].astype(int) - seen).mean() < 1


# What the task makes of its settings


def test_norm_mode_reaches_the_backbone_alone():
    task = make_task(norm="frozen")
    modes = {
        part: {m.mode for m in getattr(task.model, part).modules() if isinstance(m, BatchNorm)}
        for part in ("backbone", "head")
    }
    assert modes == {"backbone": {"frozen"}, "head": {"sync"}}


def test_losses_are_logged_by_name():
    trainer = make_trainer(1)
    trainer.fit(make_task(), datamodule=make_data())
    assert set(trainer.callback_metrics) == {"train/loss", "train/loss_class"}


def test_checkpoint_holds_the_classes_and_no_constants(tmp_path):
    task, trainer = make_task(), make_trainer(1)
    trainer.fit(task, datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    content = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert content["gmf_platform"]["class_names"] == CLASSES
    names = content["state_dict"]
    assert {".".join(name.split(".")[:2]) for name in names} == {"model.backbone", "model.head"}


def test_a_run_does_not_go_on_with_other_classes(tmp_path):
    path, trainer = tmp_path / "x.ckpt", make_trainer(1)
    trainer.fit(make_task(), datamodule=make_data())
    trainer.save_checkpoint(path)
    task = make_task()
    task.class_names = [*CLASSES[:2], *CLASSES[:1:-1]]
    with pytest.raises(UserError, match="label 2 is 'class 2' there and 'class 6' here"):
        make_trainer(2).fit(task, datamodule=make_data(), ckpt_path=path, weights_only=True)
