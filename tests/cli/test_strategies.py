"""Each strategy, in two real processes on gloo, against one process: from the command line."""

import json
import os
import re

import pytest
import torch
import yaml

from gmf_platform.distributed import strategies
from gmf_platform.models.weights import read_state_dict

STEPS = 10
STRATEGIES = ["ddp", "fsdp", "fsdp_sharded", "zero1", "zero2", "zero3"]


@pytest.fixture(scope="module")
def words(base, tmp_path_factory):
    """The words of a run in which nothing is random but the data."""
    content = {
        "model": {
            "backbone": {"drop_path": 0.0},
            "decode_head": {"dropout": 0.0},
            "auxiliary_head": {"dropout": 0.0},
        },
        "trainer": {
            "accelerator": "cpu",
            "precision": "32-true",
            "max_steps": STEPS,
            "val_check_interval": 5,
        },
        "checkpoint": {"every_n_steps": 4},
    }
    path = tmp_path_factory.mktemp("strategies") / "exact.yaml"
    path.write_text(yaml.safe_dump(content))
    return (*base, "--config", path)


def strategy_words(name):
    """What puts a run under a strategy; ZeRO without autocast, to be compared in float32."""
    if name == "one":
        return ("--trainer.devices", "1")
    if name.startswith("zero"):
        pytest.importorskip("deepspeed", reason="needs deepspeed: the extra of that name")
        autocast = ("--trainer.strategy.autocast", "none")
        return ("--config", f"strategy/deepspeed_{name}", *autocast, "--trainer.devices", "2")
    sharded = ("--trainer.strategy.sharded_checkpoints", "true") if "sharded" in name else ()
    config = f"strategy/{name.removesuffix('_sharded')}"
    plain = ("--model.backbone.checkpointing", "false")
    return ("--config", config, *plain, *sharded, "--trainer.devices", "2")


@pytest.fixture(scope="module")
def prepared():
    """What forked processes should not each import for themselves."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        strategies._prepare_import()
    except ImportError:
        return


@pytest.fixture(scope="module")
def finished(call_processes, words, prepared, tmp_path_factory):
    """The folder of a run under a strategy that was never stopped; made once."""
    made = {}

    def find(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            world_size = 1 if name == "one" else 2
            results = call_processes(
                world_size, "fit", *words, *strategy_words(name), "--name", "a", cwd=folder
            )
            assert [r.code for r in results] == [0] * world_size, "".join(r.err for r in results)
            assert [bool(r.out) for r in results] == [rank == 0 for rank in range(world_size)]
            made[name] = folder / "runs" / "a"
        return made[name]

    return find


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_run_of_one_process(name, finished, scalars):
    got, expected = scalars(finished(name)), scalars(finished("one"))
    losses, reference = got["train/loss"], expected["train/loss"]
    assert [step for step, _ in losses] == list(range(STEPS))
    assert dict(losses) == pytest.approx(dict(reference), abs=1e-4)
    assert losses[-1][1] < losses[0][1]
    assert dict(got["val/miou"]) == pytest.approx(dict(expected["val/miou"]), abs=2e-3)


@pytest.mark.parametrize("name", STRATEGIES[1:])
def test_norms_of_shards_are_those_of_the_whole(name, finished, scalars):
    """Of each part of the model; DeepSpeed tells the gradients of all parts together."""
    got, expected = scalars(finished(name)), scalars(finished("ddp"))
    kinds = ("gradient_norm/", "parameter_norm/", "update_ratio/")
    tags = {tag for tag in expected if tag.startswith(kinds)}
    assert len(tags) == 3 * 8  # stem, stages, two heads, all
    if name.startswith("zero"):
        tags -= {t for t in tags if t.startswith("gradient_norm/") and not t.endswith("/all")}
    assert tags == {tag for tag in got if tag.startswith(kinds)}
    for tag in tags:
        assert dict(got[tag]) == pytest.approx(dict(expected[tag]), rel=2e-2), tag


def last_weights(run):
    return read_state_dict(run / "checkpoints" / "last.ckpt")


def norms_of(tensors):
    """Running statistics, but for the means behind the stem's biases.

    Such a bias has no gradient but noise, which AdamW turns into whole steps.
    """
    kinds = ("running_mean", "running_var")
    behind_bias = re.compile(r"backbone\.conv_stem\.norm\d\.running_mean")
    return {n: t for n, t in tensors.items() if n.endswith(kinds) and not behind_bias.match(n)}


@pytest.mark.parametrize("name", STRATEGIES)
def test_norm_statistics_are_those_of_the_joined_batch(name, finished):
    got, expected = (norms_of(last_weights(finished(n))) for n in (name, "one"))
    assert got.keys() == expected.keys()
    # Ten steps of AdamW make 2e-4 of rounding errors. Statistics of one batch are compared to 1e-5 in
    # tests/models/test_norm.py.
    for key, var in expected.items():
        if key.endswith("var"):
            torch.testing.assert_close(got[key], var, rtol=1e-3, atol=1e-5, msg=key)
    for key, mean in expected.items():
        if key.endswith("mean"):
            std = expected[key.replace("mean", "var")].sqrt()
            assert ((got[key] - mean).abs() < 1e-3 * std + 1e-5).all(), key


@pytest.mark.parametrize("name", STRATEGIES)
def test_weights_are_converted(name, finished, gmf, tmp_path):
    checkpoint = finished(name) / "checkpoints" / "last.ckpt"
    result = gmf("convert", checkpoint, "out.safetensors")
    assert result.code == 0, result.err
    got, expected = read_state_dict(tmp_path / "out.safetensors"), read_state_dict(checkpoint)
    shapes = {key: value.shape for key, value in last_weights(finished("one")).items()}
    assert {key: value.shape for key, value in got.items()} == shapes
    assert all(torch.equal(got[key], expected[key]) for key in expected)


STOPPER = """
import os, signal
from lightning.pytorch import Callback

class Stopper(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if os.environ.get("STOP_AT") == str(trainer.global_step) and trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_stopped_and_resumed(name, finished, words, call_processes, scalars, monkeypatch, tmp_path):
    """A signal to the second process alone stops both; the same command goes on exactly."""
    (tmp_path / "stopper.py").write_text(STOPPER)
    monkeypatch.syspath_prepend(tmp_path)
    stopping = ("--trainer.callbacks", "[{class_path: stopper.Stopper}]")
    line = ("fit", *words, *strategy_words(name), *stopping, "--name", "a")
    monkeypatch.setenv("STOP_AT", "6")
    results = call_processes(2, *line, cwd=tmp_path)
    assert [result.code for result in results] == [75, 75], results[0].err
    monkeypatch.delenv("STOP_AT")
    results = call_processes(2, *line, cwd=tmp_path)
    assert [result.code for result in results] == [0, 0], results[0].err + results[1].err
    assert "going on at step 7 of 10" in results[0].out

    whole, resumed = finished(name), tmp_path / "runs" / "a"
    got, expected = scalars(resumed), scalars(whole)
    for tag in ("train/loss", "val/miou"):
        assert got[tag] == expected[tag]
    weights, reference = last_weights(resumed), last_weights(whole)
    assert weights.keys() == reference.keys()
    differ = [key for key in weights if not torch.equal(weights[key], reference[key])]
    assert not differ


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp_sharded", "zero3"])
def test_scores_do_not_depend_on_the_number_of_processes(name, finished, call_processes, tmp_path):
    """Six images: 1, 2 and 3 processes hold 6, 3 and 2; with batches of four, one holds none."""
    run = finished(name)
    lines = []
    for world_size, batch in ((1, 1), (2, 1), (3, 1), (1, 4), (2, 4), (3, 4)):
        words = ("--run", run, "--trainer.devices", world_size, "--trainer.strategy", "auto")
        results = call_processes(
            world_size, "validate", *words, "--data.eval_batch_size", batch, cwd=tmp_path
        )
        assert [r.code for r in results] == [0] * world_size, results[0].err
        lines.append(json.loads(results[0].out.splitlines()[-1])["val/miou"])
    assert lines[0] == lines[1] == lines[2]
    assert lines[3] == lines[4] == lines[5]


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", ["fsdp", "zero3"])
def test_sharded_models_are_scored_with_unequal_shares(
    name, batch, finished, call_processes, tmp_path
):
    """Six images: in batches of four, the third of 3 processes holds none."""
    run = finished(name)
    sizes = ("--data.eval_batch_size", batch, "--data.global_batch_size", "6")  # as 3 can share
    alone = ("--trainer.strategy", "auto", "--trainer.devices", "1")
    scores = []
    for words in (alone, strategy_words(name), (*strategy_words(name)[:-1], "3")):
        results = call_processes(
            int(words[-1]),
            *("validate", "--run", run, *words, *sizes),
            cwd=tmp_path,
        )
        assert {r.code for r in results} == {0}, results[0].err
        scores.append(json.loads(results[0].out.splitlines()[-1])["val/miou"])
    assert scores[0] == scores[1] == scores[2]


@pytest.fixture(scope="module")
def in_two_parts(call_processes, words, prepared, scalars, tmp_path_factory):
    """The losses of a run of 6 steps by some processes, gone on with by others; made once."""
    made = {}

    def find(name, *numbers):
        if (name, *numbers) not in made:
            folder = tmp_path_factory.mktemp("parts")
            batch = ("--data.global_batch_size", "6")
            line = ("fit", *words, *strategy_words(name)[:-2], *batch, "--name", "a")
            for world_size, steps in zip(numbers, (6, STEPS), strict=True):
                devices = ("--trainer.devices", world_size, "--trainer.max_steps", steps)
                results = call_processes(world_size, *line, *devices, cwd=folder)
                errors = "".join(result.err for result in results)
                assert [result.code for result in results] == [0] * world_size, errors
            assert f"going on at step 6 of {STEPS}" in results[0].out
            made[name, *numbers] = dict(scalars(folder / "runs" / "a")["train/loss"])
        return made[name, *numbers]

    return find


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("ddp", 3, 2),
        ("ddp", 2, 1),
        ("fsdp", 1, 2),
        ("fsdp_sharded", 3, 2),
        ("fsdp_sharded", 2, 1),
        ("zero1", 2, 1),
        ("zero2", 2, 1),
        ("zero3", 1, 2),
    ],
)
def test_another_number_of_processes(name, before, after, in_two_parts):
    """The run is that of one process, stopped and gone on with at the same step."""
    losses, expected = in_two_parts(name, before, after), in_two_parts("one", 1, 1)
    assert len(losses) == STEPS
    assert losses == pytest.approx(expected, abs=1e-4)
