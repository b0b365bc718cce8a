"""docs/tutorials/own_code.md: its head, loss and data set train on one process and on two."""

import json
import re
from contextlib import chdir

import pytest
import torch
from blocks import blocks
from reader import SMALL

PAGE = "docs/tutorials/own_code.md"
EXACT = ["--model.backbone.drop_path", "0", "--trainer.precision", "32-true"]


@pytest.fixture(scope="module")
def lab(sample_ade20k, tmp_path_factory):
    """The repository of the page, with drawn data."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "my_lab").mkdir()
    (folder / "my_lab" / "__init__.py").touch()
    root = folder / "data" / "drawn"
    root.mkdir(parents=True)
    for part in ("images", "annotations"):
        (root / part).symlink_to(sample_ade20k / part)
    for block in blocks(PAGE):
        name = re.match(r"# (my_lab\S*)", block.text)
        if name and block.language in ("python", "yaml"):
            (folder / name[1]).write_text(block.text + "\n")
        elif block.language == "python":
            with chdir(folder):
                exec(block.text, {})  # noqa: S102 - as a reader would
    assert (root / "training.txt").read_text().count("\t") == 12
    return folder


@pytest.fixture
def words(lab, monkeypatch):
    monkeypatch.syspath_prepend(lab)
    small = {
        "backbone.embedding_dims": SMALL[r"model\.backbone\.embedding_dims"],
        "backbone.depths": SMALL[r"model\.backbone\.depths"],
        "backbone.mlp_ratios": SMALL[r"model\.backbone\.mlp_ratios"],
        "schedule.warmup_steps": "2",
    }
    model = [word for key, value in small.items() for word in (f"--model.{key}", value)]
    data = ["--data.global_batch_size", "4", "--data.crop_size", "64", "--data.num_workers", "0"]
    run = "--trainer.max_steps 6 --trainer.val_check_interval 6 --trainer.log_every_n_steps 1"
    return [
        "--config",
        "seg_ade20k",
        "--config",
        "my_lab.yaml",
        *model,
        *data,
        *EXACT,
        *run.split(),
    ]


def losses(text):
    return [float(value) for value in re.findall(r"^step .*?loss ([\d.]+)", text, re.MULTILINE)]


def test_two_processes_are_one(call, call_processes, lab, words):
    one = call("fit", *words, "--name", "one", cwd=lab)
    assert one.code == 0, one.err
    ddp = ["--config", "strategy/ddp", "--trainer.accelerator", "cpu", "--trainer.devices", "2"]
    two = call_processes(2, "fit", *words, *ddp, "--name", "two", cwd=lab)
    assert [result.code for result in two] == [0, 0], "".join(result.err for result in two)
    assert len(losses(one.out)) == 6
    assert losses(two[0].out) == pytest.approx(losses(one.out), abs=2e-4)
    scores = [json.loads(result.out.splitlines()[-1])["val/miou"] for result in (one, two[0])]
    assert scores[1] == pytest.approx(scores[0], abs=5e-3)


def test_a_typo_in_a_key_of_yours(call, lab, words):
    result = call("fit", *words, "--model.decode_head.channel", "8", cwd=lab)
    assert result.code == 2
    assert "SumHead has no 'channel'; did you mean 'channels'?" in result.err


def test_help_has_your_arguments(call, lab, words):
    said = call("fit", *words, "--help", cwd=lab).out
    assert "--model.loss.alpha float = 0.5 (default 0.3)" in said
    assert "--model.decode_head.channels int = 32 (default 64)" in said


def test_the_loss(lab, words):
    """With both factors 1/2 it is the Dice loss of Milletari et al. but for the squares."""
    from my_lab.losses import Tversky

    labels = torch.randint(0, 3, (2, 8, 8), generator=torch.manual_seed(0))
    labels[0, :2] = 255
    truth = torch.stack([labels == k for k in range(3)], 1).float()
    right, wrong = 40 * truth, -40 * truth
    loss = Tversky(alpha=0.5, beta=0.5)
    assert loss(right, labels) < 1e-5
    assert loss(wrong, labels) > 0.8
    whole = loss(right - wrong[:1], labels)
    halves = [loss((right - wrong[:1])[i : i + 1], labels[i : i + 1]) for i in (0, 1)]
    assert whole == pytest.approx(sum(halves) / 2)
