"""Each strategy, in two real processes on gloo, against one process: from the command line."""

import json
import os

import pytest
import yaml

from gmf_platform.distributed import strategies

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
def alone(call, words, tmp_path_factory):
    """The run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    result = call("fit", *words, *strategy_words("one"), "--name", "one", cwd=folder)
    assert result.code == 0, result.err
    return folder / "runs" / "one"


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_run_of_one_process(name, words, alone, gmf_processes, scalars, prepared, tmp_path):
    results = gmf_processes(2, "fit", *words, *strategy_words(name), "--name", name)
    assert [result.code for result in results] == [0, 0], results[0].err + results[1].err
    got, expected = scalars(tmp_path / "runs" / name), scalars(alone)
    losses, reference = got["train/loss"], expected["train/loss"]
    assert [step for step, _ in losses] == list(range(STEPS))
    assert dict(losses) == pytest.approx(dict(reference), abs=1e-4)
    assert losses[-1][1] < losses[0][1]
    assert dict(got["val/miou"]) == pytest.approx(dict(expected["val/miou"]), abs=2e-3)
    assert json.loads(results[0].out.splitlines()[-1])["step"] == STEPS
    assert results[1].out == ""
