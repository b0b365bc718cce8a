"""Every shipped config is the config of a model that trains."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from datamodules.layouts import LAYOUTS
from gmf_platform.cli.arguments import shipped_folder
from gmf_platform.models.backbones.groupmixformer import VARIANTS

CONFIGS = shipped_folder("configs")
TASKS = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
SINGLE = [name for name in TASKS if name != "multitask"]
OVERLAYS = sorted(
    str(path.relative_to(CONFIGS).with_suffix(""))
    for path in CONFIGS.glob("*/*.yaml")
    if path.parent.name != "backbone" or path.stem.startswith("timm_")
)
SMALL = Path(__file__).with_name("overlays")
# Of the two-stage detectors: what is built stays the same.
FEWER_REGIONS = [f"--model.head.rpn.proposals_{mode}=20" for mode in ("train", "test")]

# With the 1000-class head, as the authors' code builds them (large: see VARIANTS).
PUBLISHED = {
    "mobile": 5_733_120,
    "tiny": 10_949_152,
    "small": 22_421_320,
    "base": 45_827_272,
    "large": 71_833_648,
}


@pytest.fixture
def root(request):
    """The words that give a config's data sets drawn data that they can read."""

    def find(config):
        data = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())["data"]
        tasks = data["init_args"].get("tasks")
        keys = {"data": data} if tasks is None else {f"data.tasks.{n}": x for n, x in tasks.items()}
        samples = {key: LAYOUTS[x["class_path"]].sample for key, x in keys.items()}
        return [
            word
            for key, sample in samples.items()
            for word in (f"--{key}.root", request.getfixturevalue(f"sample_{sample}"))
        ]

    return find


def task_of(overlay):
    """The config that an overlay's own comment puts it behind."""
    named = re.search(r"--config (\w+) --config ", (CONFIGS / f"{overlay}.yaml").read_text())
    return named[1] if named else "seg_ade20k"


def small(config):
    """The overlays that make a run of a config small: that of all runs, and that of its task."""
    own = SMALL / f"{config.partition('_')[0]}.yaml"
    return [own] if config == "multitask" else [SMALL / "run.yaml", own]


def parameters(out, part):
    return int(re.search(rf"^{part} +([\d,]+)$", out, re.MULTILINE)[1].replace(",", ""))


@pytest.fixture
def fit(gmf, root):
    """Fit a config on drawn data, made small."""

    def run(config, *words):
        configs = [word for path in (config, *small(config)) for word in ("--config", path)]
        result = gmf("fit", *configs, *root(config), "--name", "a", *words)
        assert result.code == 0, result.err
        return result

    return run


@pytest.mark.parametrize("config", [name for name in SINGLE if "rcnn" not in name])
def test_two_steps(fit, config):
    score = json.loads(fit(config).out.splitlines()[-1])
    assert score["step"] == 2
    assert score["checkpoint_hash"]


@pytest.mark.parametrize("config", [name for name in TASKS if "rcnn" in name])
def test_two_steps_without_a_checkpoint(fit, config):
    """Whose heads would fill 2 GB on the disk; runs of small ones are in test_detection_runs.py."""
    assert "2 steps and a validation batch" in fit(config, *FEWER_REGIONS, "--dry-run").out


def test_two_steps_of_joint_training(fit):
    regions = [word.replace("model.head", "model.tasks.det.head") for word in FEWER_REGIONS]
    result = fit("multitask", *regions, "--model.statistics_batches", "1", "--dry-run")
    assert "2 steps and a validation batch" in result.out


@pytest.mark.parametrize("path", sorted(SMALL.iterdir()), ids=lambda path: path.stem)
def test_the_small_overlays_leave_the_model_alone(path):
    assert "model" not in yaml.safe_load(path.read_text())


@pytest.mark.parametrize("config", TASKS)
def test_sources_of_constants_are_named(config):
    """``[swin]`` behind a number stands for what the file's head says of it."""
    text = (CONFIGS / f"{config}.yaml").read_text()
    sources = set(re.findall(r"\[(\w+)\]", text.partition("\n\n")[0]))
    named = set(re.findall(r"# (?:.* )?\[([a-z]\w*)\]", text))
    assert sources
    assert named <= sources


def test_a_backbone_overlay_for_each_variant():
    stems = {path.stem for path in (CONFIGS / "backbone").glob("*.yaml")}
    assert {stem for stem in stems if not stem.startswith("timm_")} == set(VARIANTS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_backbone_overlay(gmf, variant):
    with torch.device("meta"):  # weights without memory or time
        result = gmf("info", "--config", "seg_ade20k", "--config", f"backbone/{variant}")
    assert result.code == 0, result.err
    channels = VARIANTS[variant].embedding_dims[-1]
    head = 2 * channels + 1000 * (channels + 1)  # a norm and a linear layer
    assert parameters(result.out, "backbone") == PUBLISHED[variant] - head


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_other_overlay(gmf, root, overlay):
    config = task_of(overlay)
    with torch.device("meta"):
        result = gmf("info", "--config", config, "--config", overlay, *root(config))
    assert result.code == 0, result.err
    assert parameters(result.out, "all") > 0
