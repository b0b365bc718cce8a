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


def test_without_an_average_nothing_is_said(gmf, base, trained):
    result = gmf("fit", *base, "--init_from", trained.best, "--dry-run")
    assert "moving average" not in result.out
