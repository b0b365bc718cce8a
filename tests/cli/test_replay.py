"""A captured step made again: where it begins, and whether float32 cures it."""

import re

import pytest
import yaml

from gmf_platform.callbacks.capture import Capture

BRITTLE = '''
"""Modules that break, each in its own way."""

import os
from collections.abc import Sequence

import torch
from torch import nn

from gmf_platform.models.heads import FCNHead
from gmf_platform.models.losses import CrossEntropy


class Cancelling(nn.Module):
    """The identity; but in bfloat16 100.25 - 100 is 0."""

    def forward(self, x):
        quarter = torch.full_like(x, 100) + 0.25 - 100
        return x * (0.25 / quarter)


class Root(nn.Module):
    """Finite at 0; its gradient is not."""

    def forward(self, x):
        return x + (0 * x).square().sum().sqrt()


class _Steep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, gradient):
        ctx.gradient = gradient
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, torch.tensor([ctx.gradient], device=gradient.device), None


class Steep(nn.Module):
    """The identity, with a parameter of a given gradient."""

    def __init__(self, gradient):
        super().__init__()
        self.weight, self.gradient = nn.Parameter(torch.zeros(1)), gradient

    def forward(self, x):
        return _Steep.apply(x, self.weight, self.gradient)


KINDS = {
    "cancelling": Cancelling,
    "root": Root,
    "infinite": lambda: Steep(float("inf")),
    "large": lambda: Steep(2e38),  # the largest float32 is 3.4e38
    "sound": lambda: Steep(0.0),
}


class Head(FCNHead):
    def __init__(self, in_channels: Sequence[int], num_classes: int, **settings):
        super().__init__(in_channels, num_classes, **settings)
        self.brittle = KINDS[os.environ["BRITTLE"]]()

    def forward(self, features):
        return self.brittle(super().forward(features))
'''


@pytest.fixture(scope="module")
def line(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("brittle")
    (folder / "brittle.py").write_text(BRITTLE)
    content = {
        "model": {"auxiliary_head": {"class_path": "brittle.Head"}},
        "trainer": {"accelerator": "cpu"},
        "guard": {"mode": "capture"},
    }
    (folder / "brittle.yaml").write_text(yaml.safe_dump(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield ("fit", *base, "--config", folder / "brittle.yaml", "--name", "a")


@pytest.fixture
def capture(gmf, line, monkeypatch, tmp_path):
    """Train until the guard has captured a step; returns the file and what was printed."""

    def find(kind, *words):
        monkeypatch.setenv("BRITTLE", kind)
        result = gmf(*line, *words)
        assert result.code == 4, result.out + result.err
        (path,) = (tmp_path / "runs" / "a" / "captures").iterdir()
        return path, result.out

    return find


BF16 = ("--trainer.precision", "bf16-mixed")
NAME = "model.auxiliary_head.brittle"


def test_an_output_that_float32_cures(gmf, capture):
    path, said = capture("cancelling", *BF16)
    assert f"replay {path.relative_to(path.parents[3])}" in said
    result = gmf("replay", path)
    assert result.code == 0, result.err
    exact = result.out.index("32-true")
    assert f"first: the output of {NAME} (Cancelling), in the forward pass" in result.out[:exact]
    assert re.search(r"  input +bfloat16 \(4, 8, 4, 4\): -0\.\d+ to 0\.\d+\n", result.out[:exact])
    assert "512 of 512 not finite" in result.out[:exact]
    assert "all is finite" in result.out[exact:]
    assert result.out.endswith("float32      cures it\n")
    (ids,) = Capture.load(path).ids()
    assert f"samples: {', '.join(ids)}" in result.out
    assert ", ".join(ids) in said


def test_a_gradient_that_float32_does_not_cure(gmf, capture, line, scalars, tmp_path):
    """And the step is the same: drop-path, dropout and statistics are those of the run."""
    path, _ = capture("root", *BF16)
    result = gmf("replay", path)
    assert result.code == 0, result.err
    assert result.out.count(f"first: the gradient that {NAME} gives its input") == 2
    assert re.search(
        r"gradient of its output bfloat16 \(4, 8, 4, 4\): -\d\S+ to \d\S+\n", result.out
    )
    assert re.search(r"gradient of its input bfloat16 .*: nothing, 512 of 512 not", result.out)
    assert result.out.endswith("float32      does not cure it\n")

    unguarded = gmf(*line, *BF16, "--guard.mode", "off", "--name", "off", "--trainer.max_steps", 1)
    assert unguarded.code == 0
    (_, loss), *_ = scalars(tmp_path / "runs" / "off")["train/loss"]
    assert re.search(r"^bf16-mixed .*, loss (\S+)$", result.out, re.MULTILINE)[1] == f"{loss:.6g}"


def test_another_precision(gmf, capture):
    path, _ = capture("cancelling", *BF16)
    result = gmf("replay", path, "--trainer.precision", "32-true")
    assert result.code == 1
    assert "all is finite" in result.out
    assert "cure" not in result.out
    result = gmf("replay", path, "--trainer.precision", "16-mixed")  # has 100.25, on a CPU too
    assert result.code == 1
    assert "16-mixed     loss_decode" in result.out
    result = gmf("replay", path, "--trainer.precision", "17-mixed")
    assert result.code == 2


@pytest.mark.parametrize(
    ("kind", "words", "expected"),
    [
        ("infinite", (), f"first: the gradient of {NAME}.weight, in the backward pass"),
        (
            "large",
            ("--data.per_device_batch_size", "2"),
            f"first: the gradients of {NAME}.weight, in their sum over micro-batches",
        ),
    ],
)
def test_a_parameter(gmf, capture, kind, words, expected):
    path, said = capture(kind, *words)
    assert "the gradients of 1 parameters are not finite, while the losses are" in said
    result = gmf("replay", path)
    assert result.code == 0, result.err
    assert expected in result.out


def test_what_one_device_cannot_repeat(gmf, capture, monkeypatch):
    path, _ = capture("infinite")
    monkeypatch.setenv("BRITTLE", "sound")
    content = Capture.load(path)
    content.config = content.config.replace("root: /", "root: /no/such/folder/")
    content.save(path)  # and no data set
    result = gmf("replay", path)
    assert result.code == 1, result.err
    assert "all is finite" in result.out
    assert "ranks" not in result.out
    content.world_size = 2
    content.save(path)
    assert "The step was made by 2 ranks" in gmf("replay", path).out


def test_files_that_are_no_captures(gmf, capture, trained, tmp_path):
    path, _ = capture("infinite")
    path.write_bytes(path.read_bytes()[:1000])
    for words, expected in {
        ("no.pt",): "no capture no.pt",
        ("--trainer.precision", "32-true", path): "no capture 32-true; it comes first",
        (path,): "is damaged, or no capture",
        (trained.best,): "is no capture",
    }.items():
        result = gmf("replay", *words)
        assert result.code == 2
        assert expected in result.err
