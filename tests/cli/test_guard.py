"""A loss or gradient that is not finite, on one rank or on all, under each strategy."""

import math
import re
from pathlib import Path

import pytest
import torch
import yaml

from gmf_platform.callbacks.capture import Capture
from gmf_platform.distributed import strategies
from gmf_platform.models.weights import read_state_dict

FRAGILE = '''
"""A loss that breaks on one batch: the one whose labels have the sum in the environment."""

import os

import torch
from lightning.pytorch import Callback

from gmf_platform.models.losses import CrossEntropy


class Fragile(CrossEntropy):
    def forward(self, logits, labels):
        loss = super().forward(logits, labels)
        if str(int(labels.sum())) != os.environ.get("BAD_SUM"):
            return loss
        nothing = 0 * loss
        return loss + {"loss": nothing / nothing, "gradient": nothing.sqrt()}[os.environ["BAD"]]


class Chooser(Callback):
    """Makes it break at the optimiser step and on the rank that the environment names."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        step, rank = trainer.global_step, trainer.global_rank
        if os.environ.get("BAD_AT") in (f"{step}:{rank}", f"batch {batch_idx}:{rank}", "always"):
            os.environ["BAD_SUM"] = str(int(batch["masks"].sum()))
'''
OTHERS = ["fsdp", "zero1", "zero2", "zero3"]
SLOW_OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in OTHERS]
EXACT = ("--model.backbone.drop_path", "0", "--model.decode_head.dropout", "0",
         "--model.auxiliary_head.dropout", "0")  # fmt: skip


@pytest.fixture(scope="module")
def line(base, tmp_path_factory):
    """The words of a run that can be broken."""
    folder = tmp_path_factory.mktemp("guard")
    (folder / "fragile.py").write_text(FRAGILE)
    content = {
        "model": {"loss": {"class_path": "fragile.Fragile"}},
        "trainer": {
            "accelerator": "cpu",
            "precision": "32-true",
            "callbacks": [{"class_path": "fragile.Chooser"}],
        },
    }
    (folder / "fragile.yaml").write_text(yaml.safe_dump(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("BAD", "loss")
        patch.setenv("DS_ACCELERATOR", "cpu")
        patch.delenv("BAD_SUM", raising=False)
        yield ("fit", *base, "--config", folder / "fragile.yaml", "--name", "a")


def under(name):
    if name.startswith("zero"):
        pytest.importorskip("deepspeed", reason="needs deepspeed: the extra of that name")
        strategies._prepare_import()  # once, before the processes fork
        return ("--config", f"strategy/deepspeed_{name}", "--trainer.strategy.autocast", "none")
    return ("--config", f"strategy/{name}", "--model.backbone.checkpointing", "false")


@pytest.fixture
def run(call_processes, line, monkeypatch, tmp_path):
    """Run in two processes: ``run("ddp", "--guard.mode", "skip", bad_at="3:1")``."""

    def fit(name, *words, bad_at, bad="loss"):
        monkeypatch.setenv("BAD_AT", bad_at)
        monkeypatch.setenv("BAD", bad)
        words = (*line, *under(name), "--trainer.devices", "2", *words)
        return call_processes(2, *words, cwd=tmp_path)

    return fit


def ids_of(text, rank):
    """Samples that a message names for a rank."""
    found = re.findall(rf"rank {rank}: .*samples (.*)", text)
    return [name for names in found for name in names.split(", ")]


def saved(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def test_raise_and_go_on(gmf, line, trained, monkeypatch, tmp_path):
    """The checkpoint of before is sound: without the fault the run is the one undisturbed."""
    monkeypatch.setenv("BAD_AT", "3:0")
    result = gmf(*line)
    assert result.code == 4
    assert "step 4 of 6: the loss is not finite" in result.out
    assert "rank 0: loss_decode nan, loss_auxiliary nan, loss nan; samples ADE_train" in result.out
    assert len(ids_of(result.out, 0)) == 4
    assert "runs/a/checkpoints/last.ckpt is of before" in result.out
    assert saved(tmp_path / "runs" / "a")["global_step"] == 3
    assert not (tmp_path / "runs" / "a" / "captures").exists()

    monkeypatch.delenv("BAD_AT")
    result = gmf(*line, "--guard.mode", "capture")  # another guard is no other run
    assert result.code == 0, result.err
    assert "going on at step 3 of 6" in result.out
    weights, expected = saved(tmp_path / "runs" / "a"), saved(trained.path)
    for name, tensor in expected["state_dict"].items():
        assert torch.equal(weights["state_dict"][name], tensor), name


@pytest.mark.parametrize("name", ["ddp", "fsdp", "zero3"])
def test_one_rank_is_seen_by_all(name, run, tmp_path):
    """And what is written is the step, with weights and statistics as they were before."""
    results = run(name, "--guard.mode", "capture", bad_at="3:1")
    assert [result.code for result in results] == [4, 4], results[0].err + results[1].err
    text = results[0].out
    assert "step 4 of 6: the loss is not finite" in text
    assert (len(ids_of(text, 0)), len(ids_of(text, 1))) == (0, 2)
    folder = tmp_path / "runs" / "a"
    assert [path.name for path in (folder / "captures").iterdir()] == ["step-4-rank-1.pt"]
    assert f"replay {Path('runs/a/captures/step-4-rank-1.pt')}" in text

    capture = Capture.load(folder / "captures" / "step-4-rank-1.pt")
    assert capture.ids() == [ids_of(text, 1)]
    assert (capture.step, capture.rank, capture.world_size) == (4, 1, 2)
    assert capture.precision == "32-true"
    assert yaml.safe_load(capture.config)["model"]["init_args"]["loss"]
    assert capture.batches[0]["images"].dtype == torch.uint8
    expected = read_state_dict(folder / "checkpoints" / "last.ckpt")  # of step 3
    weights = {n.removeprefix("model."): tensor for n, tensor in capture.state_dict.items()}
    for key, tensor in expected.items():
        assert torch.equal(weights[key], tensor), key


@pytest.mark.parametrize("name", ["ddp", *SLOW_OTHERS])
def test_gradients_are_seen(name, run, tmp_path):
    results = run(name, "--guard.mode", "capture", bad_at="3:1", bad="gradient")
    assert [result.code for result in results] == [4, 4], results[0].err + results[1].err
    text = results[0].out
    found = re.search(r"step 4 of 6: the gradients of (\d+) parameters are not finite", text)
    assert int(found[1]) > 100
    assert "  the last of the model first: model.auxiliary_head." in text
    assert (len(ids_of(text, 0)), len(ids_of(text, 1))) == (2, 2)
    names = {path.name for path in (tmp_path / "runs" / "a" / "captures").iterdir()}
    assert names == {"step-4-rank-0.pt", "step-4-rank-1.pt"}


@pytest.fixture(scope="module")
def skipped_alone(call, line, scalars, tmp_path_factory):
    """The curves of one process that passes over a step."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BAD_AT", "3:0")
        result = call(*line, *EXACT, "--guard.mode", "skip", cwd=folder)
    assert result.code == 0, result.err
    assert "passed over; 1 so far" in result.out
    return scalars(folder / "runs" / "a")


@pytest.mark.parametrize("bad", ["loss", "gradient"])
@pytest.mark.parametrize("name", ["ddp", *SLOW_OTHERS])
def test_skipped(name, bad, run, skipped_alone, scalars, tmp_path):
    """The run is that of one process which passes over the same step."""
    results = run(name, *EXACT, "--guard.mode", "skip", bad_at="3:1", bad=bad)
    assert [result.code for result in results] == [0, 0], results[0].err + results[1].err
    assert "passed over; 1 so far" in results[0].out
    got = scalars(tmp_path / "runs" / "a")
    assert got["guard/skipped"] == [(3, 1.0)]
    losses, expected = (dict(curves["train/loss"]) for curves in (got, skipped_alone))
    assert math.isnan(expected.pop(3))
    assert math.isnan(losses.pop(3)) == (bad == "loss")
    assert losses == pytest.approx(expected, abs=1e-4)
    assert dict(got["val/miou"]) == pytest.approx(dict(skipped_alone["val/miou"]), abs=2e-3)


def test_what_a_skipped_step_leaves_alone(gmf, line, modules, tmp_path):
    """Weights, moments and statistics to the last bit; schedule and data go on."""
    modules("states", STATES)
    watcher = "[{class_path: fragile.Chooser}, {class_path: states.States}]"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BAD_AT", "3:0")
        words = ("--guard.mode", "skip", "--trainer.callbacks", watcher)
        assert gmf(*line, *words).code == 0
    before, after, later = (torch.load(tmp_path / f"{step}.pt") for step in (3, 4, 5))
    for kind in ("weights", "moments"):
        assert len(before[kind]) > 100
        for key, tensor in before[kind].items():
            assert torch.equal(after[kind][key], tensor), key
        assert any(not torch.equal(later[kind][key], t) for key, t in before[kind].items())
    assert after["lr"] < before["lr"]
    assert before["ids"] != after["ids"]


STATES = """
import torch
from lightning.pytorch import Callback

class States(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        (optimizer,) = trainer.optimizers
        moments = {
            f"{number}.{name}": value.clone()
            for number, state in optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }
        weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        content = {"weights": weights, "moments": moments, "ids": batch["ids"]}
        content["lr"] = optimizer.param_groups[0]["lr"]
        torch.save(content, f"{trainer.global_step}.pt")
"""


def test_too_many_in_a_row(gmf, line, monkeypatch):
    monkeypatch.setenv("BAD_AT", "always")
    words = ("--guard.mode", "skip", "--guard.max_skips", "2")
    result = gmf(*line, *words)
    assert result.code == 4
    assert "passed over; 2 so far" in result.out
    assert "step 3 of 6: the loss is not finite" in result.out
    assert "2 steps in a row were passed over before it" in result.out


@pytest.mark.parametrize("name", ["ddp", pytest.param("zero2", marks=pytest.mark.slow)])
def test_a_part_of_an_accumulated_step(name, run, tmp_path):
    """The second of two micro-batches, of one image each; both are needed to make it again."""
    words = ("--data.per_device_batch_size", "1", "--guard.mode", "capture")
    results = run(name, *words, bad_at="batch 5:1")
    assert [result.code for result in results] == [4, 4], results[0].err
    text = results[0].out
    assert "step 3 of 6: the loss is not finite" in text
    (bad,) = ids_of(text, 1)
    capture = Capture.load(tmp_path / "runs" / "a" / "captures" / "step-3-rank-1.pt")
    assert len(capture.seeds) == len(set(capture.seeds)) == len(capture.batches) == 2
    assert capture.ids()[1] == [bad]


def test_off(gmf, line, monkeypatch):
    monkeypatch.setenv("BAD_AT", "3:0")
    result = gmf(*line, "--guard.mode", "off")
    assert result.code == 0
    assert "loss nan" in result.out


def test_max_skips_is_checked(gmf, line):
    result = gmf(*line, "--guard.max_skips", "-1")
    assert result.code == 2
    assert "guard.max_skips: expected int (0 or more), not -1" in result.err
