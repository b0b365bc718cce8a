"""Training by the task against a plain loop, and its scores against pycocotools."""

import json
import os
from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from pycocotools.coco import COCO as PlainCoco
from pycocotools.cocoeval import COCOeval

from datamodules import COCO
from gmf_platform.evaluation import DetectionInference, ImageDetections
from gmf_platform.models.backbones import GroupMixFormer
from gmf_platform.models.heads import CascadeMaskRCNN, FasterRCNN, MaskRCNN, RetinaNet
from gmf_platform.optim import MultiStep
from gmf_platform.tasks import DetectionTask

LR, DECAY, WARMUP, SEED = 1e-3, 0.05, 2, 7
SMALL = {"embedding_dims": (10, 10, 20, 20), "depths": (1, 1, 1, 1), "mlp_ratios": (2,) * 4}
HEADS = {
    "retinanet": partial(RetinaNet, channels=8, num_convs=1),
    "faster_rcnn": partial(FasterRCNN, channels=8, width=16),
    "mask_rcnn": partial(MaskRCNN, channels=8, width=16),
    "cascade_mask_rcnn": partial(CascadeMaskRCNN, channels=8, width=16),
}


@pytest.fixture
def make_data(sample_coco):
    def make(global_batch_size=4, *, with_masks=True, **settings):
        return COCO(
            str(sample_coco),
            scale=(96, 96),
            with_masks=with_masks,
            global_batch_size=global_batch_size,
            num_workers=0,
            seed=SEED,
            **settings,
        )

    return make


@pytest.fixture
def make_task(make_data):
    names = list(make_data().class_names)

    def make(head="retinanet", *, drop_path=0.1, **settings):
        torch.manual_seed(1)
        return DetectionTask(
            names,
            backbone=GroupMixFormer(drop_path=drop_path, **SMALL),
            head=HEADS[head],
            optimizer=partial(torch.optim.AdamW, lr=LR, weight_decay=DECAY),
            schedule=MultiStep(milestones=(1,), warmup_steps=WARMUP),
            seed=SEED,
            **settings,
        )

    return make


class Watch(Callback):
    """Keeps the loss and learning rate of each batch, and the gradients of the last."""

    def __init__(self):
        self.losses, self.rates, self.gradients = [], [], {}

    def on_train_batch_start(self, trainer, *_):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_after_backward(self, trainer, pl_module):
        self.gradients = {
            name: None if parameter.grad is None else parameter.grad.clone()
            for name, parameter in pl_module.model.named_parameters()
        }

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        self.losses.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)


def make_trainer(steps=1, **settings):
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    defaults = {"accelerator": "cpu", "devices": 1, "limit_val_batches": 0, "max_epochs": -1}
    settings = defaults | dict.fromkeys(quiet, False) | settings
    return Trainer(max_steps=steps, use_distributed_sampler=False, **settings)


def train(task, data, steps, **settings):
    watch = Watch()
    make_trainer(steps, callbacks=[watch], **settings).fit(task, datamodule=data)
    return watch


def plain_rate(step, steps_per_epoch):
    rate = LR * (0.1 if step >= steps_per_epoch else 1)
    return rate if step >= WARMUP else rate * (1 - (1 - step / WARMUP) * (1 - 1e-3))


def plain_training(model, batches, steps_per_epoch):
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
            group["lr"] = plain_rate(step, steps_per_epoch)
        loss = sum(model(batch["images"], batch["sizes"], batch["targets"]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("head", ["retinanet", "mask_rcnn"])
def test_equals_a_plain_loop(make_task, make_data, head):
    task, data = make_task(head), make_data()
    model = deepcopy(task.model)
    watch = train(task, make_data(), 5)
    data.setup("fit")
    per_epoch = data.steps_per_epoch()
    theirs = plain_training(model, data.train_loader(steps=5), per_epoch)
    assert 2 < per_epoch < 5  # the milestone comes in between
    assert watch.rates == pytest.approx([plain_rate(step, per_epoch) for step in range(5)])
    assert watch.losses == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize(("head", "steps"), [("retinanet", 4), ("mask_rcnn", 1)])
def test_two_processes_equal_one(make_task, make_data, run_processes, head, steps):
    """Regions are drawn by score: noise of 1e-7 in weights may draw others in the second step."""
    alone = train(make_task(head, drop_path=0.0), make_data(4), steps).losses

    def on_rank(rank):
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        os.environ |= {name: str(value) for name, value in places.items()}
        os.environ |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}  # connected already
        task = make_task(head, drop_path=0.0)
        return train(task, make_data(4), steps, devices=2, strategy="ddp").losses

    first, second = run_processes(on_rank, 2)
    means = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    assert first != second  # each has its own half of the batch
    assert means == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_every_parameter_gets_a_gradient(make_task, make_data, head):
    """Cascade's anchors must lie in the image, so that its coarse maps learn of large ones only."""
    watch = train(make_task(head, drop_path=0.0), make_data(), 1)
    assert [name for name, grad in watch.gradients.items() if grad is None] == []
    zero = [name for name, grad in watch.gradients.items() if not grad.any()]
    coarse = ("head.neck.fpn_convs.2", "head.neck.fpn_convs.3")
    assert [n for n in zero if not (head == "cascade_mask_rcnn" and n.startswith(coarse))] == []


@pytest.mark.parametrize("head", HEADS)
def test_a_batch_without_objects_leaves_no_parameter_out(make_task, make_data, head):
    data, task = make_data(), make_task(head, drop_path=0.0)
    data.setup("fit")
    batch = next(iter(data.train_loader(steps=1)))
    for target in batch["targets"]:
        target |= {name: target[name][:0] for name in ("boxes", "labels", "masks")}
    losses = task.model.train()(batch["images"], batch["sizes"], batch["targets"])
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert torch.isfinite(total)
    gradients = {name: p.grad for name, p in task.model.named_parameters()}
    assert [name for name, grad in gradients.items() if grad is None] == []
    assert all(grad.isfinite().all() for grad in gradients.values())


def test_losses_are_logged_by_name(make_task, make_data):
    trainer = make_trainer(1)
    trainer.fit(make_task("mask_rcnn"), datamodule=make_data())
    logged = trainer.callback_metrics
    parts = {"rpn_class", "rpn_box", "class", "box", "mask"}
    assert set(logged) == {"train/loss", *(f"train/loss_{part}" for part in parts)}
    total = sum(logged[f"train/loss_{part}"] for part in parts)
    torch.testing.assert_close(logged["train/loss"], total)


# Evaluation


class Shifted(DetectionInference):
    """Finds three of four objects, the boxes moved and the scores drawn at random."""

    def __init__(self, *, masks=True):
        self.masks = masks

    def detections(self, model, batch):
        return [self._one(*image) for image in zip(batch["ids"], batch["truth"], strict=True)]

    def _one(self, image_id, truth):
        generator = np.random.default_rng(image_id)
        kept = np.flatnonzero(generator.random(len(truth["labels"])) < 0.75)
        kept = [i for i in kept if not truth["crowd"][i]]
        noise = generator.normal(0, 2, (len(kept), 4))
        rles = [truth["rles"][i] for i in kept]
        return ImageDetections(
            tuple(truth["rles"][0]["size"]) if truth["rles"] else (96, 96),
            np.clip(truth["boxes"].numpy()[kept] + noise, 0, 96).astype(np.float32),
            generator.random(len(kept)).astype(np.float32),
            truth["labels"].numpy()[kept].astype(np.int16),
            [rle["counts"] for rle in rles] if self.masks else None,
        )


@pytest.fixture
def plain_scores(sample_coco, make_data):
    """pycocotools' numbers for what ``Shifted`` finds on the first images of the validation."""

    def score(images, kind):
        file = sample_coco / "annotations" / "instances_val2017.json"
        categories = sorted(c["id"] for c in json.loads(file.read_text())["categories"])
        rows, ids = [], []
        for batch in list(make_data().eval_loader("validation"))[:images]:
            ids += batch["ids"]
            for image_id, found in zip(
                batch["ids"], Shifted().detections(None, batch), strict=True
            ):
                boxes = found.boxes.astype(float)
                boxes[:, 2:] -= boxes[:, :2]
                for i, rle in enumerate(found.segmentations()):
                    row = {"image_id": image_id, "category_id": categories[found.labels[i]]}
                    row |= {"score": float(found.scores[i])}
                    rows.append(
                        row
                        | ({"segmentation": rle} if kind == "segm" else {"bbox": boxes[i].tolist()})
                    )
        truth = PlainCoco(str(file))
        evaluation = COCOeval(truth, truth.loadRes(rows), kind)
        evaluation.params.imgIds = ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return evaluation.stats.tolist()

    return score


NAMES = ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"]
NAMES += ["ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"]


def test_scores_equal_pycocotools(make_task, make_data, plain_scores):
    task, data = make_task("mask_rcnn", inference=Shifted()), make_data()
    trainer = make_trainer(limit_val_batches=1.0)
    (scores,) = trainer.validate(task, datamodule=data, verbose=False)
    for kind, theirs in (("box", plain_scores(6, "bbox")), ("mask", plain_scores(6, "segm"))):
        expected = {f"val/{kind}_{n}": v for n, v in zip(NAMES, theirs, strict=True) if v >= 0}
        ours = {name: value for name, value in scores.items() if name.startswith(f"val/{kind}")}
        assert ours == pytest.approx(expected, rel=1e-6)  # what is not defined is not logged
    assert 0.2 < scores["val/box_ap"] < 0.9
    table = task.score_table().splitlines()
    assert len(table) == len(task.class_names) + 2
    # Test is validation by another name, and begins anew.
    (tested,) = trainer.test(task, datamodule=data, verbose=False)
    assert {f"val/{k[5:]}": v for k, v in tested.items()} == scores


def test_boxes_alone(make_task, make_data, plain_scores):
    task = make_task("retinanet", inference=Shifted(masks=False))
    trainer = make_trainer(limit_val_batches=1.0)
    data = make_data(with_masks=True)
    (scores,) = trainer.validate(task, datamodule=data, verbose=False)
    assert scores["val/box_ap"] == pytest.approx(plain_scores(6, "bbox")[0], rel=1e-6)
    assert not any("mask" in name for name in scores)


def test_a_part_of_the_images_is_scored_by_itself(make_task, make_data, plain_scores):
    task = make_task("mask_rcnn", inference=Shifted())
    trainer = make_trainer(limit_val_batches=3)
    (scores,) = trainer.validate(task, datamodule=make_data(), verbose=False)
    assert scores["val/box_ap"] == pytest.approx(plain_scores(3, "bbox")[0], rel=1e-6)
    assert task.scores.images == 3


def test_the_check_before_training_is_forgotten(make_task, make_data, plain_scores):
    task = make_task("mask_rcnn", inference=Shifted())
    settings = {"limit_val_batches": 1.0, "num_sanity_val_steps": 2, "val_check_interval": 1}
    trainer = make_trainer(1, check_val_every_n_epoch=None, **settings)
    trainer.fit(task, datamodule=make_data())
    assert task.scores.images == 6
    expected = plain_scores(6, "segm")[0]
    assert float(trainer.callback_metrics["val/mask_ap"]) == pytest.approx(expected, rel=1e-6)


def test_settings_of_an_evaluation(make_task):
    settings = make_task(inference=Shifted(), backend="pycocotools").evaluation_settings()
    assert settings == {"inference": "Shifted", "backend": "pycocotools"}


@pytest.mark.parametrize("head", ["retinanet", "mask_rcnn"])
def test_prediction_has_original_coordinates(make_task, sample_coco, head):
    data = COCO(str(sample_coco), scale=(64, 64), num_workers=0)
    task = make_task(head).eval()
    task.model.head.selection = type(task.model.head.selection)(min_score=0.0, number=5)
    paths = sorted((sample_coco / "val2017").iterdir())[:1]
    (batch,) = data.predict_loader(paths)
    with torch.no_grad():
        (found,) = task.predict_step(batch, 0)
        (raw,) = task.model(batch["images"], batch["sizes"])
    assert found.size == (96, 96)
    assert len(found.boxes) == 5
    expected = (raw.boxes * 1.5).clamp(0, 96)
    torch.testing.assert_close(torch.from_numpy(found.boxes), expected)
    assert (found.rles is not None) == (head == "mask_rcnn")


def test_a_picture_has_truth_and_prediction(make_task, make_data):
    task, data = make_task("mask_rcnn", inference=Shifted()), make_data()
    batch = next(iter(data.eval_loader("validation")))
    (found,) = task.inference.detections(None, batch)
    found = found._replace(scores=np.ones_like(found.scores))
    row = task.compared(batch, {"detections": [found]}, 0)
    assert row.labels == set(batch["truth"][0]["labels"].tolist())
    image, truth, guess = np.split(row.picture, 3, axis=1)
    assert (image != truth).any()
    assert (truth != guess).any()


def test_a_checkpoint_names_classes_and_categories(make_task, make_data, sample_coco, tmp_path):
    trainer = make_trainer(1)
    trainer.fit(make_task(), datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    kept = torch.load(tmp_path / "a.ckpt", weights_only=True)["gmf_platform"]
    file = json.loads((sample_coco / "annotations" / "instances_val2017.json").read_text())
    names = {c["id"]: c["name"] for c in file["categories"]}
    assert kept["category_ids"] == sorted(names)
    assert kept["class_names"] == [names[i] for i in kept["category_ids"]]
