"""Detection from the command line: train, stop, go on, score, predict."""

import json

import pytest
import torch
import yaml

STOPPER = '''
"""Stops its own process before a batch that the environment names."""

import os
import signal

from lightning.pytorch import Callback


class DetectionStopper(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if str(batch_idx) == os.environ.get("STOP_AT"):
            os.kill(os.getpid(), signal.SIGTERM)
'''
STEPS = 6


@pytest.fixture(scope="module")
def folder(sample_coco, tmp_path_factory):
    """Where the runs of this file are: a small Mask R-CNN with drop-path, and the 3x transforms."""
    folder = tmp_path_factory.mktemp("detection")
    (folder / "detection_stopper.py").write_text(STOPPER)
    content = {
        "init_from": "none",
        "model": {
            "backbone": {
                "embedding_dims": [20, 40, 60, 80],
                "depths": [1, 1, 1, 1],
                "mlp_ratios": [2, 2, 2, 2],
                "drop_path": 0.2,
            },
            "head": {"channels": 8, "width": 16},
            "optimizer": {"lr": 1e-3},
            "schedule": {"milestones": [1], "warmup_steps": 2},
        },
        "data": {
            "root": str(sample_coco),
            "global_batch_size": 4,
            "scale": [96, 64],
            "multi_scale": [48, 64],
            "crop_branch": True,
            "num_workers": 0,
        },
        "trainer": {
            "max_steps": STEPS,
            "val_check_interval": 3,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 1,
            "callbacks": [{"class_path": "detection_stopper.DetectionStopper"}],
        },
        "checkpoint": {"every_n_steps": 2},
        "pictures": {"count": 2},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.fixture
def run(folder, call, monkeypatch):
    """Run a verb in the folder: ``run("fit", "--name", "a", stop=3)``."""
    monkeypatch.syspath_prepend(folder)

    def verb(name, *words, stop=None):
        monkeypatch.setenv("STOP_AT", str(stop))
        return call(name, *words, cwd=folder)

    return verb


BASE = ("--config", "det_coco_mask_rcnn", "--config", "small.yaml")


@pytest.fixture
def whole(run, folder):
    """The run that is never stopped."""
    path = folder / "runs" / "whole"
    if not path.exists():
        result = run("fit", *BASE, "--name", "whole")
        assert result.code == 0, result.err
    return path


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def test_a_run(whole):
    assert (whole / "pictures" / "validation.png").is_file()
    score = json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])
    assert score["step"] == STEPS
    assert 0 <= score["val/mask_ap"] <= 1
    log = (whole / "log.txt").read_text()
    assert "validation at step 3" in log


def test_stopped_and_resumed(run, folder, whole):
    """Regions are drawn on the device: also they must be those of the run that went through."""
    stopped = run("fit", *BASE, "--name", "stopped", stop=2)
    assert stopped.code == 75
    assert "SIGTERM: saved at step 3" in stopped.out
    resumed = run("fit", *BASE, "--name", "stopped")
    assert resumed.code == 0, resumed.err
    assert "going on at step 3 of 6" in resumed.out
    ours, theirs = weights(folder / "runs" / "stopped"), weights(whole)
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    for name, tensor in ours["state_dict"].items():
        assert torch.equal(tensor, theirs["state_dict"][name]), name
    scores = [
        json.loads((folder / "runs" / name / "metrics.jsonl").read_text().splitlines()[-1])
        for name in ("stopped", "whole")
    ]
    assert scores[0]["val/mask_ap"] == scores[1]["val/mask_ap"]


def test_scores_of_boxes_and_masks(run, whole):
    result = run("test", "--run", whole, "--model.backend", "pycocotools")
    assert result.code == 0, result.err
    score = json.loads(result.out.splitlines()[-1])
    assert score["backend"] == "pycocotools"
    assert {"test/box_ap", "test/box_ar100", "test/mask_ap", "test/mask_ap50"} <= set(score)
    titles = " ".join(result.err.splitlines()[0].split())
    assert titles == "class box AP box AP50 mask AP mask AP50"
    # Either backend, and the verb that the run itself used.
    again = json.loads(run("validate", "--run", whole).out.splitlines()[-1])
    for name in ("box_ap", "mask_ap", "box_ar100"):
        assert again[f"val/{name}"] == pytest.approx(score[f"test/{name}"], abs=1e-9)


def test_several_scales(run, whole):
    words = ("--config", "test/det_multi_scale", "--data.eval_scales", "[48,64]")
    result = run("test", "--run", whole, *words)
    assert result.code == 0, result.err
    score = json.loads(result.out.splitlines()[-1])
    assert score["inference"] == "DetectionTestTimeAugmentation"


def test_prediction_needs_no_annotations(run, folder, whole, sample_coco):
    """Category ids are those that the checkpoint kept."""
    images = sorted((sample_coco / "val2017").iterdir())[:2]
    words = ("--images", *images, "--output", "out", "--data.root", "nowhere")
    least = ("--model.head.selection.min_score", "0.0")
    result = run("predict", "--run", whole, *words, *least)
    assert result.code == 0, result.err
    rows = json.loads((folder / "out" / "predictions.json").read_text())
    file = json.loads((sample_coco / "annotations" / "instances_val2017.json").read_text())
    categories = {c["id"]: c["name"] for c in file["categories"]}
    assert rows
    for row in rows:
        assert categories[row["category_id"]] == row["category"]
        assert row["segmentation"]["size"] == [96, 96]
        left, top, width, height = row["bbox"]
        assert 0 <= left <= left + width <= 96
        assert 0 <= top <= top + height <= 96
    assert {row["image_id"] for row in rows} <= {image["id"] for image in file["images"]}
    for image in images:
        assert (folder / "out" / f"{image.stem}_overlay.jpg").is_file()


def test_a_mask_head_without_masks_is_told(run):
    result = run("fit", *BASE, "--data.with_masks", "false", "--name", "none")
    assert result.code == 2
    assert "set data.with_masks to true" in result.err
