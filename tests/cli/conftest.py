"""A network that trains in a second, and a finished run of it."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture(scope="session")
def overlay(sample_ade20k, tmp_path_factory):
    """An overlay of seg_ade20k: a network of 0.2 M parameters, six steps, everything switched on."""
    content = {
        "init_from": "none",
        "model": {
            "backbone": {
                "embedding_dims": [20, 40, 60, 80],
                "depths": [1, 1, 1, 1],
                "mlp_ratios": [2, 2, 2, 2],
                "drop_path": 0.1,
            },
            "decode_head": {"channels": 16},
            "auxiliary_head": {"channels": 16},
            "optimizer": {"lr": 1e-3},
            "schedule": {"warmup_steps": 2},
        },
        "data": {
            "root": str(sample_ade20k),
            "global_batch_size": 4,
            "crop_size": 64,
            "scale": [256, 64],
            "num_workers": 0,
        },
        "trainer": {
            "max_steps": 6,
            "val_check_interval": 3,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
        },
        "checkpoint": {"every_n_steps": 2},
    }
    path = tmp_path_factory.mktemp("overlay") / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="session")
def base(overlay):
    """The words that every small run begins with."""
    return ("--config", "seg_ade20k", "--config", overlay)


@pytest.fixture(scope="session")
def small_multitask(sample_imagenet, sample_coco, sample_ade20k, tmp_path_factory):
    """A network of 0.2 M parameters on the drawn sets, in which nothing is random but the data."""
    content = {
        "init_from": "none",
        "model": {
            "backbone": {
                "embedding_dims": [20, 40, 60, 80],
                "depths": [1, 1, 1, 1],
                "mlp_ratios": [2, 2, 2, 2],
                "drop_path": 0.0,
            },
            "tasks": {
                "det": {"head": {"channels": 16, "num_convs": 1}},
                "seg": {
                    "decode_head": {"channels": 16, "dropout": 0.0},
                    "auxiliary_head": {"channels": 16, "dropout": 0.0},
                },
            },
            "statistics_batches": 4,
            "optimizer": {"lr": 1e-3},
            "schedule": {"warmup_steps": 2},
        },
        "data": {
            "num_workers": 0,
            "joint_size": [96, 64],
            "tasks": {
                "cls": {"root": str(sample_imagenet), "global_batch_size": 4, "image_size": 64},
                "det": {"root": str(sample_coco), "global_batch_size": 4, "scale": [96, 64]},
                "seg": {
                    "root": str(sample_ade20k),
                    "global_batch_size": 4,
                    "crop_size": 64,
                    "scale": [256, 64],
                },
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 6,
            "val_check_interval": 3,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
        },
        "checkpoint": {"every_n_steps": 2},
        "pictures": {"count": 1},
    }
    path = tmp_path_factory.mktemp("multitask") / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    return ("--config", "multitask", "--config", "demo/multitask", "--config", path)


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    path: Path
    result: Any

    @property
    def cwd(self):
        return self.path.parents[1]

    @property
    def best(self):
        return self.path / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="session")
def trained(base, call, tmp_path_factory):
    """A finished run called ``done``; not to be written to."""
    cwd = tmp_path_factory.mktemp("trained")
    result = call("fit", *base, "--name", "done", cwd=cwd)
    assert result.code == 0, result.err
    return Trained(cwd / "runs" / "done", result)


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Write a module that a config's class path can name: ``modules("heads", source)``."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)

    def write(name, source):
        (folder / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)

    return write


def read_scalars(run):
    """TensorBoard's curves of a run as TensorBoard shows them: tag -> [(step, value), ...]."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


@pytest.fixture(scope="session")
def scalars():
    return read_scalars


@pytest.fixture(scope="session")
def logged_steps():
    """The steps that a run's text says were reported, as often as they were."""
    return lambda text: [int(number) for number in re.findall(r"step (\d+)/", text)]
