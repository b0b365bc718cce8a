"""The average of a run's weights, once it is in a checkpoint, is what every verb takes."""

import json

import pytest
import torch

from gmf_platform.models.weights import read_state_dict


@pytest.fixture(scope="module")
def averaged(base, call, tmp_path_factory):
    """A finished run with an average that lags far behind."""
    cwd = tmp_path_factory.mktemp("average")
    result = call("fit", *base, "--average.decay", "0.9", "--name", "a", cwd=cwd)
    assert result.code == 0, result.err
    return cwd / "runs" / "a"


def named(tensors):
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def test_what_is_read_is_the_average(averaged):
    path = averaged / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    average, weights = named(content["average"]["state_dict"]), named(content["state_dict"])
    found = read_state_dict(path)
    assert found.keys() == average.keys() == weights.keys()
    assert all(torch.equal(found[name], average[name]) for name in found)
    assert any(not torch.equal(found[name], weights[name]) for name in found)


def test_score_while_training_is_the_checkpoints(gmf, averaged):
    scores = [json.loads(line) for line in (averaged / "metrics.jsonl").read_text().splitlines()]
    result = gmf("validate", "--run", averaged)
    assert result.code == 0, result.err
    assert json.loads(result.out.splitlines()[-1])["val/miou"] == scores[-1]["val/miou"]


def test_report_names_the_average(gmf, base, averaged):
    path = averaged / "checkpoints" / "best.ckpt"
    result = gmf("fit", *base, "--init_from", path, "--dry-run")
    assert result.code == 0, result.err
    assert f"{path}, the moving average:" in result.out


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed_zero2"])
def test_under_strategies(gmf, base, call_processes, tmp_path, strategy):
    """What a folder of shards or a strategy's own file says is the average too."""
    if "deepspeed" in strategy:
        pytest.importorskip("deepspeed", reason="needs deepspeed: the extra of that name")
        own = ("--trainer.strategy.autocast", "none")
    else:
        own = ("--trainer.strategy.sharded_checkpoints", "true")
    words = ("--config", f"strategy/{strategy}", *own, "--trainer.devices", "2")
    average = ("--average.decay", "0.9", "--trainer.precision", "32-true")
    line = ("fit", *base, *words, *average, "--name", "a")
    results = call_processes(2, *line, cwd=tmp_path, timeout=600)
    assert [r.code for r in results] == [0, 0], results[0].err
    run = tmp_path / "runs" / "a"
    path = run / "checkpoints" / "last.ckpt"
    assert path.is_dir()
    scores = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    alone = ("--trainer.strategy", "auto", "--trainer.devices", "1")
    result = gmf("validate", "--run", run, *alone)
    assert result.code == 0, result.err
    score = json.loads(result.out.splitlines()[-1])["val/miou"]
    assert score == pytest.approx(scores[-1]["val/miou"], abs=1e-6)
    result = gmf("fit", *base, "--init_from", path, "--dry-run")
    assert f"{path}, the moving average:" in result.out


def test_without_an_average_nothing_is_said(gmf, base, trained):
    result = gmf("fit", *base, "--init_from", trained.best, "--dry-run")
    assert "moving average" not in result.out
