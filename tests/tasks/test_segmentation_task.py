"""Training by the task against a plain loop that knows nothing of Lightning."""

import os
from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.nn import functional as F
from torch.utils.data import DataLoader

from datamodules import ADE20K
from gmf_platform.evaluation import labels_at_original_size
from gmf_platform.models.backbones import GroupMixFormer
from gmf_platform.models.heads import FCNHead, UPerNet
from gmf_platform.models.norm import BatchNorm, set_norm_mode
from gmf_platform.optim import Polynomial
from gmf_platform.tasks import SegmentationTask

CLASSES = [f"class {i}" for i in range(9)]  # the sample has 8: the last never occurs
LR, DECAY, WARMUP, SEED = 2e-3, 0.05, 3, 7
SMALL = {"embedding_dims": (10, 10, 20, 20), "depths": (1, 1, 1, 2), "mlp_ratios": (2,) * 4}


def make_task(*, dropout=0.1, drop_path=0.1, backbone=None, lr=LR, **settings):
    torch.manual_seed(1)
    return SegmentationTask(
        CLASSES,
        backbone=backbone or GroupMixFormer(drop_path=drop_path, **SMALL),
        decode_head=partial(UPerNet, channels=8, dropout=dropout),
        auxiliary_head=partial(FCNHead, channels=8, dropout=dropout),
        optimizer=partial(torch.optim.AdamW, lr=lr, weight_decay=DECAY),
        schedule=Polynomial(warmup_steps=WARMUP),
        seed=SEED,
        **settings,
    )


@pytest.fixture
def make_data(sample_ade20k):
    def make(global_batch_size=4, **settings):
        return ADE20K(
            str(sample_ade20k),
            crop_size=64,
            scale=(256, 64),
            global_batch_size=global_batch_size,
            num_workers=0,
            seed=SEED,
            **settings,
        )

    return make


class Watch(Callback):
    """Keeps the loss and learning rate of each batch, and the gradients of the last."""

    def __init__(self):
        self.losses, self.rates, self.gradients, self.logged = [], [], {}, []

    def on_train_batch_start(self, trainer, *_):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_after_backward(self, trainer, pl_module):
        self.gradients = {
            name: None if parameter.grad is None else parameter.grad.clone()
            for name, parameter in pl_module.model.named_parameters()
        }

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        # Lightning hands out the share of an accumulated step.
        self.losses.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)
        self.logged.append(float(trainer.callback_metrics["train/loss"]))


def make_trainer(steps, **settings):
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    defaults = {"accelerator": "cpu", "devices": 1, "limit_val_batches": 0, "max_epochs": -1}
    settings = defaults | dict.fromkeys(quiet, False) | settings
    return Trainer(max_steps=steps, use_distributed_sampler=False, **settings)


def train(task, data, steps, **settings):
    watch = Watch()
    make_trainer(steps, callbacks=[watch], **settings).fit(task, datamodule=data)
    return watch


def cross_entropy(logits, labels):
    resized = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
    losses = F.cross_entropy(resized, labels.long(), ignore_index=255, reduction="none")
    return losses.mean()


def plain_rate(step, total):
    rate = LR * (1 - step / total)
    return rate if step >= WARMUP else rate * (1 - (1 - step / WARMUP) * (1 - 1e-6))


def plain_training(model, batches, steps):
    """The recipe in one loop of PyTorch."""
    model.train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, weight_decay=DECAY)
    losses = []
    for step, batch in enumerate(batches):
        torch.manual_seed((SEED * 1_000_003 + step) * 1_009)
        for group in optimizer.param_groups:
            group["lr"] = plain_rate(step, steps)
        output = model(batch["images"], batch["sizes"])
        loss = cross_entropy(output.logits, batch["masks"])
        loss = loss + 0.4 * cross_entropy(output.auxiliary, batch["masks"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_equals_a_plain_loop(make_data):
    task, data = make_task(), make_data()
    model = deepcopy(task.model)
    ours = train(task, make_data(), 10).losses
    data.setup("fit")
    theirs = plain_training(model, data.train_loader(steps=10), 10)
    assert len(ours) == 10
    assert ours == pytest.approx(theirs, rel=1e-5)
    for a, b in zip(task.model.state_dict().values(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_repeats_itself_and_depends_on_the_seed(make_data):
    first, again, other = (make_task() for _ in range(3))
    other.seed += 1
    losses = [train(task, make_data(), 3).losses for task in (first, again, other)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]  # by dropout and drop path alone


def fixed_norms(**settings):
    """A task whose result for an image does not depend on its batch mates."""
    task = make_task(dropout=0.0, drop_path=0.0, **settings)
    set_norm_mode(task.model, "frozen")
    return task


def test_accumulation_equals_the_whole_batch(make_data):
    whole = train(fixed_norms(), make_data(8), 5)
    parts = train(
        fixed_norms(), make_data(8, per_device_batch_size=4), 5, accumulate_grad_batches=2
    )
    assert len(parts.losses) == 10
    steps = np.reshape(parts.losses, (5, 2)).mean(1)
    assert steps.tolist() == pytest.approx(whole.losses, rel=1e-5)
    # What is logged at a step's last micro-batch is the mean over the step.
    assert parts.logged[1::2] == pytest.approx(whole.logged, rel=1e-5)
    assert whole.losses[-1] != pytest.approx(whole.losses[0], rel=1e-2)
    # The schedule counts optimiser steps: both micro-batches of a step have its rate.
    assert parts.rates[::2] == parts.rates[1::2] == whole.rates
    assert whole.rates == pytest.approx([plain_rate(step, 5) for step in range(5)])


class SaveAt(Callback):
    """Saves at the end of a step's last batch."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (1, 2), (2, 1), (4, 2)])
def test_goes_on_with_another_accumulation(make_data, tmp_path, before, after):
    """As a run must that goes on with more or fewer devices; seven steps straddle epochs."""

    def run(parts, **settings):
        data, watch = make_data(8, per_device_batch_size=8 // parts), Watch()
        callbacks = [watch, SaveAt(3, tmp_path / f"{parts}.ckpt")]
        trainer = make_trainer(7, callbacks=callbacks, accumulate_grad_batches=parts)
        trainer.fit(fixed_norms(), datamodule=data, weights_only=True, **settings)
        return np.reshape(watch.losses, (-1, parts)).mean(1).tolist(), watch.rates[::parts]

    losses, rates = run(before)
    rest = run(after, ckpt_path=tmp_path / f"{before}.ckpt")
    assert rest[0] == pytest.approx(losses[3:], rel=1e-5)
    assert rest[1] == rates[3:]


def test_two_processes_equal_one(make_data, run_processes):
    alone = train(make_task(dropout=0.0, drop_path=0.0), make_data(8), 4).losses

    def on_rank(rank):
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        os.environ |= {name: str(value) for name, value in places.items()}
        os.environ |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}  # connected already
        task = make_task(dropout=0.0, drop_path=0.0)
        return train(task, make_data(8), 4, devices=2, strategy="ddp").losses

    first, second = run_processes(on_rank, 2)
    means = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    assert first != second  # each has its own half of the batch
    assert means == pytest.approx(alone, rel=1e-5)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_overfits_two_images(make_data):
    data = make_data(2)
    data.setup("fit")
    batch = next(iter(data.train_loader(steps=1)))
    task, watch = make_task(dropout=0.0, drop_path=0.0, lr=0.04), Watch()
    make_trainer(80, callbacks=[watch]).fit(task, DataLoader([batch] * 80, batch_size=None))
    assert watch.losses[0] > 1.5
    assert watch.losses[-1] < 0.3
    labels = task.model(batch["images"], batch["sizes"]).logits.argmax(1)
    truth = F.interpolate(batch["masks"][:, None].float(), labels.shape[1:])[:, 0]
    assert (labels == truth)[truth != 255].float().mean() > 0.8


def test_every_parameter_gets_a_gradient(make_data):
    watch = train(make_task(backbone=GroupMixFormer("mobile", drop_path=0.0)), make_data(), 1)
    assert [name for name, grad in watch.gradients.items() if grad is None or not grad.any()] == []


@pytest.mark.parametrize(("lr_for", "factor"), [(None, 1), (4, 1), (16, 0.25), (2, 2)])
def test_learning_rate_scales_with_the_batch(make_data, lr_for, factor):
    watch = train(make_task(lr_for_batch_size=lr_for), make_data(4), WARMUP + 2)
    assert watch.rates[-1] == pytest.approx(factor * plain_rate(WARMUP + 1, WARMUP + 2))


# Evaluation


@torch.no_grad()
def plain_miou(model, data):
    """Mean IoU by sets of pixels."""
    both, either = np.zeros((2, 9))
    for batch in data.eval_loader("validation"):
        logits = model(batch["images"]).logits
        for size in (batch["images"].shape[2:], batch["original_sizes"][0].tolist()):
            logits = F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)
        guess, truth = logits[0].argmax(0).numpy(), batch["masks"][0].numpy()
        for k in range(9):
            hit, real = (guess == k) & (truth != 255), truth == k
            both[k] += (hit & real).sum()
            either[k] += (hit | real).sum()
    return np.mean(both[either > 0] / either[either > 0])


def test_scores_equal_plain_counting(make_data):
    task, data = make_task(), make_data()
    train(task, data, 5)  # so that it predicts more than one class
    trainer = make_trainer(1, limit_val_batches=1.0)
    (scores,) = trainer.validate(task, datamodule=data, verbose=False)
    assert scores["val/miou"] == pytest.approx(plain_miou(task.model.eval(), data), rel=1e-6)
    assert set(scores) == {"val/miou", "val/macc", "val/aacc"}
    assert "class 8" in task.score_table()
    assert not task.mean_iou.confusion.any()  # the next pass begins anew
    # Test is validation by another name.
    (tested,) = trainer.test(task, datamodule=data, verbose=False)
    assert list(tested.values()) == list(scores.values())
    assert set(tested) == {"test/miou", "test/macc", "test/aacc"}


def test_prediction_has_original_sizes(sample_ade20k, make_data, tmp_path):
    task, data = make_task().eval(), make_data()
    paths = sorted((sample_ade20k / "images/validation").iterdir())[:2]
    batches = list(data.predict_loader(paths))
    with torch.no_grad():
        (labels,) = task.predict_step(batches[0], 0)
        logits = task.model(batches[0]["images"]).logits[0]
    expected = labels_at_original_size(
        logits, padded_size=(64, 64), size=(64, 64), original_size=(96, 96)
    )
    assert torch.equal(labels, expected)


@torch.no_grad()
def test_batch_mates_of_other_sizes_are_cut_apart():
    task = make_task().eval()
    batch = {
        "images": torch.randint(0, 256, (2, 3, 80, 90), dtype=torch.uint8),
        "sizes": torch.tensor([[80, 70], [64, 90]]),
        "original_sizes": torch.tensor([[160, 140], [100, 141]]),
    }
    assert [tuple(x.shape) for x in task.predict_step(batch, 0)] == [(160, 140), (100, 141)]


# What the task makes of its settings


def test_norm_mode_reaches_the_backbone_alone():
    task = make_task(norm="frozen")
    modes = {
        part: {m.mode for m in getattr(task.model, part).modules() if isinstance(m, BatchNorm)}
        for part in ("backbone", "decode_head", "auxiliary_head")
    }
    assert modes == {"backbone": {"frozen"}, "decode_head": {"sync"}, "auxiliary_head": {"sync"}}


def test_convolutions_are_channels_last():
    weights = [p for p in make_task().model.parameters() if p.ndim == 4]
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)


def test_compiling_keeps_the_keys():
    plain, compiled = make_task(), make_task(compile=True)
    assert list(plain.state_dict()) == list(compiled.state_dict())
    assert compiled.model._compiled_call_impl is not None
    assert plain.model._compiled_call_impl is None


def test_without_an_auxiliary_head(make_data):
    torch.manual_seed(1)
    task = SegmentationTask(
        CLASSES,
        backbone=GroupMixFormer(**SMALL),
        decode_head=partial(FCNHead, channels=8),
    )
    trainer = make_trainer(1)
    trainer.fit(task, datamodule=make_data())
    assert set(trainer.callback_metrics) == {"train/loss", "train/loss_decode"}
    assert trainer.callback_metrics["train/loss"] == trainer.callback_metrics["train/loss_decode"]


def test_losses_are_logged_by_name(make_data):
    trainer = make_trainer(1)
    trainer.fit(make_task(), datamodule=make_data())
    logged = trainer.callback_metrics
    assert set(logged) == {"train/loss", "train/loss_decode", "train/loss_auxiliary"}
    total = logged["train/loss_decode"] + logged["train/loss_auxiliary"]
    torch.testing.assert_close(logged["train/loss"], total)


def test_checkpoint_holds_the_classes_and_no_constants(make_data, tmp_path):
    task, trainer = make_task(), make_trainer(1)
    trainer.fit(task, datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    content = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert content["gmf_platform"] == {"class_names": task.class_names}
    assert {key.split(".")[0] for key in content["state_dict"]} == {"model"}
    assert not [key for key in content["state_dict"] if "normalize" in key]
