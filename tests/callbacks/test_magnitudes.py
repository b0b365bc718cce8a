from types import SimpleNamespace

import pytest
import torch
from torch import nn

from gmf_platform.callbacks import Magnitudes

RATE = 0.1


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 6)
        self.new_norm = nn.LayerNorm(6)

    def layers_by_stage(self):
        return [[[self.stem]], [[self.one]], [[self.two]]]

    def forward(self, x):
        return self.new_norm(self.two(self.one(self.stem(x))))


class Task(nn.Module):
    """With a frozen layer, a head, and one that has no gradient."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Module()
        self.model.backbone, self.model.head = Backbone(), nn.Linear(6, 2)
        self.model.idle = nn.Linear(2, 2)
        self.model.head.bias.requires_grad_(False)
        self.logged = True

    def is_logged(self):
        return self.logged


class Logger:
    def __init__(self):
        self.lines = []

    def log_metrics(self, metrics, step):
        self.lines.append((step, metrics))


@pytest.fixture
def task():
    return Task()


@pytest.fixture
def trainer(task):
    return SimpleNamespace(
        strategy=None, lightning_module=task, world_size=1, loggers=[Logger()], global_step=6
    )


def make_step(callback, trainer, task):
    """A step of plain gradient descent; returns the gradients, and the parameters of before."""
    trained = [p for p in task.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=RATE)
    task.model.head(task.model.backbone(torch.ones(2, 3))).square().sum().backward()
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    callback.on_before_optimizer_step(trainer, task, optimizer)
    optimizer.step()
    trainer.global_step += 1
    callback.on_train_batch_end(trainer, task)
    return {n: p.grad for n, p in task.model.named_parameters() if p.grad is not None}, before


def norm_of(tensors, *prefixes):
    kept = [x.flatten() for name, x in tensors.items() if name.startswith(prefixes)]
    return torch.cat(kept).norm().item()


PARTS = {
    "backbone.stem": ("backbone.stem",),
    "backbone.stage1": ("backbone.one",),
    "backbone.stage2": ("backbone.two",),
    "backbone": ("backbone.new_norm",),
    "head": ("head.weight",),
}


def test_norms_of_each_part(task, trainer):
    gradients, before = make_step(Magnitudes(), trainer, task)
    ((step, named),) = trainer.loggers[0].lines
    assert step == 6  # Lightning's number of the seventh
    for part, prefixes in PARTS.items():
        gradient, parameter = norm_of(gradients, *prefixes), norm_of(before, *prefixes)
        assert named[f"gradient_norm/{part}"] == pytest.approx(gradient, rel=1e-5), part
        assert named[f"parameter_norm/{part}"] == pytest.approx(parameter, rel=1e-5), part
        ratio = RATE * gradient / parameter
        assert named[f"update_ratio/{part}"] == pytest.approx(ratio, rel=1e-3), part
    assert named["gradient_norm/all"] == pytest.approx(norm_of(gradients, ""), rel=1e-5)
    assert named["parameter_norm/idle"] == pytest.approx(norm_of(before, "idle"), rel=1e-5)
    trained = {name: x for name, x in before.items() if name != "head.bias"}
    assert named["parameter_norm/all"] == pytest.approx(norm_of(trained, ""), rel=1e-5)
    # What has no gradient does not move, and says neither.
    assert len(named) == 3 * (len(PARTS) + 1) + 1


def test_nothing_on_other_steps(task, trainer):
    task.logged = False
    make_step(Magnitudes(), trainer, task)
    assert trainer.loggers[0].lines == []


def test_without_updates_nothing_is_copied(task, trainer):
    callback = Magnitudes(updates=False)
    make_step(callback, trainer, task)
    ((_, named),) = trainer.loggers[0].lines
    assert {tag.partition("/")[0] for tag in named} == {"gradient_norm", "parameter_norm"}


def test_a_step_that_was_passed_over(task, trainer):
    """The guard takes the gradients away, and nothing moves."""
    callback = Magnitudes()
    callback.on_before_optimizer_step(trainer, task, None)
    callback.on_train_batch_end(trainer, task)
    ((_, named),) = trainer.loggers[0].lines
    assert {tag.partition("/")[0] for tag in named} == {"parameter_norm"}
