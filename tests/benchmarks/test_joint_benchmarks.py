import importlib.util
import re
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
SMALL = """
model:
  backbone: {embedding_dims: [20, 40, 60, 80], depths: [1, 1, 1, 1], mlp_ratios: [2, 2, 2, 2]}
  tasks:
    det: {head: {channels: 16}}
    seg: {decode_head: {channels: 16}, auxiliary_head: {channels: 16}}
"""
DATA = "{{data: {{tasks: {{cls: {{root: {}}}, det: {{root: {}}}, seg: {{root: {}}}}}}}}}"


def load(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def costs(tmp_path, monkeypatch, capsys):
    """Run benchmarks/joint_costs.py on a small network; gives its figures by name."""
    (tmp_path / "small.yaml").write_text(SMALL)
    configs = ["--config", "multitask", "--config", "demo/multitask", "--config"]

    def run(what, *words):
        line = [*what, *configs, tmp_path / "small.yaml", *words]
        monkeypatch.setattr(sys, "argv", ["joint_costs.py", *map(str, line)])
        load("joint_costs").main()
        rows = re.findall(r"^(.*?) +([\d.]+)(?: ms| MiB)?$", capsys.readouterr().out, re.MULTILINE)
        return {name: float(value) for name, value in rows}

    return run


def test_a_joint_prediction_runs_the_backbone_once(costs):
    found = costs(["prediction", "--size", "256", "192", "--runs", "3"])
    assert {"backbone", "cls head", "det head", "seg alone", "together"} < found.keys()
    assert 0.7 < found["together / (backbone + heads)"] < 1.3
    assert found["together / (each alone)"] < 0.9


def test_a_step_holds_no_more_than_the_largest_task(
    costs, tmp_path, sample_imagenet, sample_coco, sample_ade20k
):
    (tmp_path / "data.yaml").write_text(DATA.format(sample_imagenet, sample_coco, sample_ade20k))
    found = costs(["memory"], "--config", tmp_path / "data.yaml")
    largest = max(found[f"{task} alone"] for task in ("cls", "det", "seg"))
    assert largest <= found["step"] <= largest + found["gradients of all"]
    assert found["step"] < found["sum of the losses"]


def test_single_runs_are_made_equal_to_the_joint_one(monkeypatch, tmp_path):
    benchmark = load("multitask")
    monkeypatch.setattr(sys, "argv", ["multitask.py", str(tmp_path)])
    options = benchmark.parse_arguments()
    joint = benchmark.overlay("joint", options)
    for task in benchmark.TASKS:
        single = benchmark.overlay(task, options)
        assert single["trainer"] == joint["trainer"]
        for key in ("backbone", "optimizer", "schedule"):
            assert single["model"][key] == joint["model"][key]
        assert single["data"] == {"num_workers": 0} | joint["data"]["tasks"][task]


def test_the_table_and_the_gain(monkeypatch, tmp_path, capsys):
    """Two seeds by hand: joint AP50 is twice that of the single task, all else is equal."""
    benchmark = load("multitask")
    alone = {"cls/top1": 0.5, "det/box_ap50": 0.2, "seg/miou": 0.25}
    curves = {}
    for seed in (0, 1):
        points = {name: [(1, 0.0), (2, value)] for name, value in alone.items()}
        curves |= {(name[:3], seed): {name: points[name]} for name in alone}
        curves["joint", seed] = points | {"det/box_ap50": [(1, 0.0), (2, 0.4)]}
    benchmark.print_scores(curves, [0, 1])
    said = capsys.readouterr().out
    assert "| AP50 | 0.400 ± 0.000 (0.400, 0.400) | 0.200 ± 0.000 (0.200, 0.200) |" in said
    assert "relative gain +0.333; by seed +0.333 +0.333" in said
    pytest.importorskip("matplotlib")
    benchmark.draw_curves(curves, [0, 1], tmp_path / "curves.svg")
    assert 0 < (tmp_path / "curves.svg").stat().st_size < 100_000
