import logging
import re
from types import SimpleNamespace

import pytest
import torch

from gmf_platform.cli import summary
from gmf_platform.cli.arguments import VerbParser, parse_arguments
from gmf_platform.cli.experiment import Experiment


@pytest.fixture
def rows(caplog, monkeypatch, tmp_path):
    """What is said of a run that is about to begin, by title."""
    monkeypatch.setattr(logging.getLogger("gmf_platform"), "propagate", True)
    caplog.set_level(logging.INFO, logger="gmf_platform")

    def say(*words):
        caplog.clear()
        argv = [str(word) for word in words]
        experiment = Experiment(parse_arguments(VerbParser("fit", "Train."), argv))
        experiment.build(tmp_path, quiet=True)
        experiment.plan_training()
        summary.say_plan(experiment)
        found = {}
        for title, text in (line.split(maxsplit=1) for line in caplog.messages):
            found.setdefault(title, []).append(text)
        return found

    return say


CPU = ("--trainer.accelerator", "cpu")


def test_joint_training(rows, small_multitask):
    found = rows(*small_multitask)
    assert [re.sub(r"\d+\.\d\d", "N", text) for text in found["operations"]] == [
        "cls: N GFLOPs in the backbone for an image of 64 x 64, forward",
        "det: N GFLOPs in the backbone for an image of 64 x 96, forward",
        "seg: N GFLOPs in the backbone for an image of 64 x 64, forward",
    ]
    assert found["batch"][1] == "det: 4 = 4 per device x 1 devices x 1 accumulated"
    assert found["strategy"] == ["one device (cpu)"]


def test_schedule(rows, base):
    words = (*base, *CPU, "--model.schedule", "gmf_platform.optim.MultiStep")
    milestones = ("--model.schedule.milestones", "[3, 5]", "--model.optimizer.lr", "6e-5")
    (said,) = rows(*words, *milestones)["schedule"]
    assert said.startswith(
        "AdamW, lr 6e-05, MultiStep (milestones [3.0, 5.0], gamma 0.1, warmup_steps 2"
    )


def test_a_run_that_ends_while_it_warms_up(rows, base):
    title = "model.schedule.warmup_steps"
    assert title not in rows(*base, *CPU)
    (said,) = rows(*base, *CPU, "--model.schedule.warmup_steps", "6")[title]
    assert said == "is 6: the run ends before its learning rate is reached"


def test_a_model_that_cannot_be_counted(rows, base, monkeypatch):
    def fails(*_, **__):
        raise NotImplementedError("it looks at values")

    monkeypatch.setattr(summary, "multiply_adds", fails)
    found = rows(*base, *CPU)
    assert "operations" not in found
    assert "data" in found


def test_only_the_first_process_speaks(rows, base, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert rows(*base, *CPU) == {}


class DDP:
    root_device = torch.device("cuda")


@pytest.mark.parametrize(("nodes", "end"), [(1, ""), (2, " on 2 nodes")])
def test_many_devices(nodes, end):
    trainer = SimpleNamespace(strategy=DDP(), world_size=16, num_nodes=nodes)
    assert summary._strategy(trainer) == f"DDP, 16 devices (cuda){end}"
