import io
import logging
import sys
from types import SimpleNamespace

import pytest
import torch

from gmf_platform.callbacks import Progress, Throughput
from gmf_platform.callbacks.throughput import Rates


@pytest.fixture
def trainer():
    return SimpleNamespace(
        global_step=4,
        max_steps=10,
        is_global_zero=True,
        sanity_checking=False,
        state=SimpleNamespace(fn="fit"),
        callback_metrics={"train/loss": torch.tensor(1.25)},
        log_every_n_steps=2,
        num_predict_batches=[5],
    )


@pytest.fixture
def progress(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("gmf_platform"), "propagate", True)
    caplog.set_level(logging.INFO, logger="gmf_platform")
    throughput = Throughput()
    throughput.rates = Rates(16.04, 0.251, 3.14, 700.0, 6e-5)
    return Progress(throughput)


def test_line(progress, trainer, caplog):
    progress.on_train_batch_end(trainer)
    (line,) = caplog.messages
    assert line == (
        "step 4/10  loss 1.2500  lr 6.00e-05  16.0 images/s  data 25 %  memory 3.1 GiB  "
        "left 1:10:00"
    )


def test_one_line_a_measurement(progress, trainer, caplog):
    for _ in range(3):
        progress.on_train_batch_end(trainer)
    assert len(caplog.messages) == 1
    progress.throughput.rates = Rates(1, 0, 0, 1, 1)
    progress.on_train_batch_end(trainer)
    assert len(caplog.messages) == 2


def test_nothing_before_the_first_measurement(progress, trainer, caplog):
    progress.throughput.rates = None
    progress.on_train_batch_end(trainer)
    assert caplog.messages == []


def test_scores(progress, trainer, caplog):
    trainer.callback_metrics |= {"val/miou": torch.tensor(0.5), "val/aacc": torch.tensor(0.75)}
    progress.on_validation_end(trainer, None)
    assert caplog.messages == ["validation at step 4  val/miou 0.5000  val/aacc 0.7500"]


def test_scores_that_a_task_has_in_front(progress, trainer, caplog):
    trainer.callback_metrics |= {"val/box_ap": torch.tensor(0.5), "val/box_ar1": torch.tensor(0.75)}
    progress.on_validation_end(trainer, SimpleNamespace(headline=("box_ap", "mask_ap")))
    assert caplog.messages == ["validation at step 4  val/box_ap 0.5000"]


def test_only_the_first_process_speaks_and_only_of_training(progress, trainer, caplog):
    for setting in ({"is_global_zero": False}, {"sanity_checking": True}, {"global_step": 0}):
        progress.on_validation_end(SimpleNamespace(**vars(trainer) | setting), None)
    trainer.is_global_zero = False
    progress.on_train_batch_end(trainer)
    assert caplog.messages == []


def test_lines_of_a_prediction(progress, trainer, caplog):
    for number in range(5):
        progress.on_predict_batch_end(trainer, None, None, None, number, 0)
    assert caplog.messages == ["predict  batch 2/5", "predict  batch 4/5"]
    trainer.is_global_zero = False
    progress.on_predict_batch_end(trainer, None, None, None, 1, 0)
    assert len(caplog.messages) == 2


def test_a_bar_only_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert not Progress.is_bar_wanted()
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert Progress.is_bar_wanted()
    monkeypatch.setenv("TERM", "dumb")
    assert not Progress.is_bar_wanted()
