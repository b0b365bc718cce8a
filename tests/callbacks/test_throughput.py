from types import SimpleNamespace

import pytest
import torch

from gmf_platform.callbacks import throughput
from gmf_platform.callbacks.throughput import Throughput, memory_gib


class Clock:
    """Time that passes when told."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


class Logger:
    def __init__(self):
        self.lines = []

    def log_metrics(self, metrics, step):
        self.lines.append((step, metrics))


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    return clock


@pytest.fixture
def trainer():
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "name": "decay"}], lr=0.5)
    return SimpleNamespace(
        global_step=0,
        log_every_n_steps=2,
        datamodule=SimpleNamespace(global_batch_size=8),
        train_dataloader=SimpleNamespace(seconds_waited=0.0),
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        optimizers=[optimizer],
        loggers=[Logger()],
    )


def step(callback, trainer, clock, *, seconds, waited, batches=1):
    """One optimiser step of some micro-batches."""
    for number in range(batches):
        callback.on_train_batch_start(trainer)
        clock.now += seconds / batches
        trainer.train_dataloader.seconds_waited += waited / batches
        trainer.global_step += number == batches - 1
        callback.on_train_batch_end(trainer)


@pytest.mark.parametrize("batches", [1, 3])
def test_rates(clock, trainer, batches):
    callback = Throughput()
    callback.on_train_start(trainer, None)
    step(callback, trainer, clock, seconds=1.0, waited=0.1, batches=batches)
    assert callback.rates is None
    step(callback, trainer, clock, seconds=3.0, waited=0.9, batches=batches)
    rates = callback.rates
    assert rates.images_per_second == pytest.approx(16 / 4)
    assert rates.data_wait == pytest.approx(0.25)
    assert rates.seconds_per_step == pytest.approx(2)
    assert rates.learning_rate == 0.5
    ((number, metrics),) = trainer.loggers[0].lines
    assert number == 1  # Lightning's number of the second step
    assert set(metrics) == {
        "speed/images_per_second",
        "speed/data_wait",
        "speed/memory_gib",
        "lr/decay",
    }


def test_each_report_begins_anew(clock, trainer):
    callback = Throughput()
    callback.on_train_start(trainer, None)
    for seconds in (1.0, 1.0, 5.0, 5.0):
        step(callback, trainer, clock, seconds=seconds, waited=0.0)
    speeds = [m["speed/images_per_second"] for _, m in trainer.loggers[0].lines]
    assert speeds == pytest.approx([8, 1.6])


def test_validation_is_not_training_time(clock, trainer):
    callback = Throughput()
    callback.on_train_start(trainer, None)
    step(callback, trainer, clock, seconds=1.0, waited=0.0)
    callback.on_validation_start(trainer, None)
    clock.now += 100
    callback.on_validation_end(trainer, None)
    step(callback, trainer, clock, seconds=1.0, waited=0.0)
    assert callback.rates.images_per_second == pytest.approx(8)


def test_a_resumed_run_counts_its_own_steps(clock, trainer):
    trainer.global_step = 41
    trainer.train_dataloader.seconds_waited = 7.0
    callback = Throughput()
    callback.on_train_start(trainer, None)
    step(callback, trainer, clock, seconds=2.0, waited=1.0)
    assert callback.rates.images_per_second == pytest.approx(4)
    assert callback.rates.data_wait == pytest.approx(0.5)


def test_the_rate_is_that_of_the_step(clock, trainer):
    """A step ends by setting the next one's rate."""
    callback, group = Throughput(), trainer.optimizers[0].param_groups[0]
    trainer.log_every_n_steps = 1
    callback.on_train_start(trainer, None)
    callback.on_train_batch_start(trainer)
    clock.now += 1
    group["lr"], trainer.global_step = 0.25, 1
    callback.on_train_batch_end(trainer)
    assert trainer.loggers[0].lines[0][1]["lr/decay"] == 0.5


def test_memory_of_the_process():
    before = memory_gib(torch.device("cpu"))
    held = torch.ones(2**28, dtype=torch.uint8)  # a quarter GiB
    assert 0.05 < before < 64
    assert memory_gib(torch.device("cpu")) >= before
    assert held[-1] == 1
