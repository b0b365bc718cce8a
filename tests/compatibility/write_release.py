"""Writes what this release leaves for the later ones, which test_releases.py reads with those.

    python tests/compatibility/write_release.py

Done once for each minor release, and committed with it. Into ``tests/fixtures/releases/X.Y`` go a
joint run that has ended, files of ``convert`` of each kind of model, what those say of a picture,
and the keys of all classes that configs name. Networks are as small as they can be.
"""

import json
import shutil
import sys
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

import gmf_platform
from datamodules.sample_data import write_sample
from gmf_platform.cli.main import main
from gmf_platform.deploy.results import ClassificationResult, SegmentationResult

ROOT = Path(__file__).resolve().parents[2]
RELEASES = ROOT / "tests" / "fixtures" / "releases"
sys.path.append(str(ROOT / "docs" / "_site"))

DET, SEG = {"channels": 8, "num_convs": 1}, {"channels": 8}
ALL = {"selection": {"min_score": 0.001}}  # an untrained head is sure of nothing
SETS = {
    "imagenet": {"root": "data/imagenet", "global_batch_size": 4, "image_size": 64},
    "coco": {"root": "data/coco", "global_batch_size": 4, "scale": [96, 64]},
    "ade20k": {
        "root": "data/ade20k",
        "classes": ["grass", "water", "sand", "disc", "square", "triangle", "star", "ring"],
        "global_batch_size": 4,
        "crop_size": 64,
        "scale": [256, 64],
    },
}
SINGLE = {
    "cls_imagenet": ("imagenet", {}),
    "det_coco_retinanet": ("coco", {"head": DET | ALL}),
    "det_coco_faster_rcnn": ("coco", {"head": {"channels": 8, "width": 8} | ALL}),
    "det_coco_mask_rcnn": ("coco", {"head": {"channels": 8, "width": 8} | ALL}),
    "det_coco_cascade_mask_rcnn": ("coco", {"head": {"channels": 8, "width": 8} | ALL}),
    "seg_ade20k": ("ade20k", {"decode_head": SEG, "auxiliary_head": SEG}),
    "seg_ade20k_semantic_fpn": ("ade20k", {"decode_head": SEG | {"fpn_channels": 8}}),
}
"""Shipped configs, each with its data and what is small about its model."""
JOINT = {
    "tasks": {
        "cls": {"batch_augment": None},
        "det": {
            "head": {
                "class_path": "gmf_platform.models.heads.RetinaNet",
                "init_args": DET | ALL,
            }
        },
        "seg": {"decode_head": SEG, "auxiliary_head": SEG},
    }
}


def small(model, data):
    """An overlay: two steps of the smallest network."""
    backbone = {"embedding_dims": [20] * 4, "depths": [1] * 4, "mlp_ratios": [1] * 4}
    trainer = {
        "accelerator": "cpu",
        "max_epochs": None,
        "max_steps": 2,
        "check_val_every_n_epoch": None,
        "val_check_interval": 2,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
    }
    return {
        "init_from": "none",
        "model": {"backbone": backbone, "schedule": {"warmup_steps": 1}} | model,
        "data": {"num_workers": 0} | data,
        "trainer": trainer,
    }


def fit(config, overlay):
    """Train in ``runs/CONFIG``."""
    if config.startswith("cls"):
        overlay["model"]["schedule"] = {"warmup_epochs": 0}
    Path(f"{config}.yaml").write_text(yaml.safe_dump(overlay))
    words = ["fit", "--config", config, "--config", f"{config}.yaml", "--name", config]
    assert main(words) == 0, config
    return Path("runs", config)


def said(result):
    """What a model says of an image, in numbers."""
    match result:
        case ClassificationResult():
            return dict(zip(result.names, result.probabilities, strict=True))
        case SegmentationResult():
            return result.labels.tolist()
        case _:
            best = result.above(float(sorted(result.scores)[-5:][0]))
            columns = best.names, best.scores.tolist(), best.boxes.tolist()
            return [list(found) for found in zip(*columns, strict=True)]


def keys():
    """The keys of all classes that configs name."""
    from keys import SECTIONS

    from gmf_platform.cli.signatures import read_signature

    paths = [path for section in SECTIONS for path in section.paths]
    return {path: sorted(read_signature(path).parameters) for path in paths}


def write(folder):
    """Fill the folder of a release."""
    for name in SETS:
        write_sample(name, Path("data", name), train=12, val=6, size=96, seed=0)
    picture = min(Path("data/ade20k/images/validation").iterdir())
    shutil.copy(picture, folder / picture.with_stem("picture").name)
    expected = {}
    for config, (data, model) in SINGLE.items():
        run = fit(config, small(model, SETS[data]))
        file = folder / f"{config}.safetensors"
        assert main(["convert", str(run / "checkpoints" / "best.ckpt"), str(file)]) == 0
        expected[config] = said(gmf_platform.load(file, device="cpu").predict(picture))
    tasks = {"cls": SETS["imagenet"], "det": SETS["coco"], "seg": SETS["ade20k"]}
    tasks["det"] = tasks["det"] | {"with_masks": False}
    run = fit("multitask", small(JOINT, {"tasks": tasks, "joint_size": [96, 64]}))
    kept = folder / "run"
    (kept / "checkpoints").mkdir(parents=True)
    shutil.copy(run / "config.yaml", kept)
    shutil.copy(run / "checkpoints" / "last.ckpt", kept / "checkpoints", follow_symlinks=True)
    shutil.copy("multitask.yaml", folder / "multitask.yaml")
    joint = gmf_platform.load(kept, device="cpu").predict(picture)
    expected["multitask"] = {task: said(result) for task, result in joint.items()}
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")
    (folder / "keys.json").write_text(json.dumps(keys(), indent=0) + "\n")


if __name__ == "__main__":
    target = RELEASES / gmf_platform.__version__.rpartition(".")[0]
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    with TemporaryDirectory() as place, chdir(place):
        write(target)
