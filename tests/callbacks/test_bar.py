import io
import re
import sys
from types import SimpleNamespace

import pytest
import torch

from gmf_platform.callbacks import Bar, Throughput
from gmf_platform.callbacks.throughput import Rates


class Terminal(io.StringIO):
    def isatty(self):
        return True


class SegmentationTask:
    headline = ("miou",)


TASK = SegmentationTask()


@pytest.fixture
def terminal(monkeypatch):
    """Let the test run on a terminal, and give that back."""

    def begin():
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "100")
        screen = Terminal()
        monkeypatch.setattr(sys, "stdout", screen)
        return screen

    return begin


@pytest.fixture
def trainer():
    return SimpleNamespace(
        global_step=4,
        max_steps=10,
        is_global_zero=True,
        sanity_checking=False,
        state=SimpleNamespace(fn="fit"),
        callback_metrics={"train/loss": torch.tensor(1.25), "val/miou": torch.tensor(0.5)},
        num_val_batches=[7],
        num_sanity_val_batches=[2],
        num_test_batches=[float("inf")],
        num_predict_batches=[9],
    )


@pytest.fixture
def bar():
    throughput = Throughput()
    throughput.rates = Rates(16.04, 0.251, 3.14, 700.0, 6e-5)
    return Bar(throughput)


def shown(screen):
    """All that was drawn, one after the other: the lines, without codes and bars."""
    plain = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", screen.getvalue().replace("\x1b[2K", "\n"))
    lines = (" ".join(re.sub("[━╸╺]", " ", line).split()) for line in plain.splitlines())
    return [line for line in lines if line]


def test_training(bar, trainer, terminal):
    screen = terminal()
    bar.on_train_start(trainer, TASK)
    trainer.global_step = 5
    bar.on_train_batch_end(trainer, TASK, None, None, 0)
    bar.teardown(trainer, TASK, "fit")
    assert shown(screen)[-2:] == [
        "SegmentationTask 5/10 left 0:58:20",
        "loss 1.2500 lr 6.00e-05 16.0 images/s data 25 % memory 3.1 GiB",
    ]


def test_validation_has_a_bar_of_its_own(bar, trainer, terminal):
    screen = terminal()
    bar.on_train_start(trainer, TASK)
    bar.on_train_batch_end(trainer, TASK, None, None, 0)
    bar.on_validation_start(trainer, TASK)
    bar.on_validation_batch_end(trainer, TASK, None, None, 2)
    bar._display.refresh()
    assert any(line.startswith("validation 3/7") for line in shown(screen)[-3:])
    bar.on_validation_end(trainer, TASK)
    bar.teardown(trainer, TASK, "fit")
    training, figures = shown(screen)[-2:]
    assert training.startswith("SegmentationTask 4/10")
    assert figures.startswith("loss 1.2500 val/miou 0.5000 lr 6.00e-05")


def test_the_first_check_is_called_so(bar, trainer, terminal):
    screen = terminal()
    trainer.sanity_checking = True
    bar.on_validation_start(trainer, TASK)
    bar.on_validation_batch_end(trainer, TASK, None, None, 1)
    bar._display.refresh()
    assert shown(screen)[-1].startswith("first check 2/2")
    bar.on_exception(trainer, TASK, KeyboardInterrupt())


def test_evaluation_alone(bar, trainer, terminal):
    screen = terminal()
    trainer.state.fn = "validate"
    bar.on_validation_start(trainer, TASK)
    bar.on_validation_batch_end(trainer, TASK, None, None, 6)
    bar.on_validation_end(trainer, TASK)
    bar.teardown(trainer, TASK, "validate")
    assert shown(screen)[-1].startswith("validation 7/7")
    bar.on_test_batch_end(trainer, TASK, None, None, 6)  # of a loader that does not tell its length
    bar.teardown(trainer, TASK, "test")
    assert shown(screen)[-1].startswith("test 7/?")


def test_prediction(bar, trainer, terminal):
    screen = terminal()
    bar.on_predict_batch_end(trainer, TASK, None, None, 4, 0)
    bar.teardown(trainer, TASK, "predict")
    assert shown(screen)[-1].startswith("predict 5/9")


def test_lines_go_above_the_bar(bar, trainer, terminal):
    screen = terminal()
    bar.on_train_start(trainer, TASK)
    print("a line")
    bar.teardown(trainer, TASK, "fit")
    assert "a line" in shown(screen)
    assert shown(screen)[-1].startswith("SegmentationTask 4/10")


def test_an_error_gives_the_terminal_back(bar, trainer, terminal):
    screen = terminal()
    bar.on_train_start(trainer, TASK)
    assert sys.stdout is not screen
    bar.on_exception(trainer, TASK, RuntimeError())
    assert sys.stdout is screen
    assert screen.getvalue().rstrip("\n").endswith("\x1b[?25h")  # the cursor is shown again


def test_other_processes_draw_nothing(bar, trainer, terminal):
    screen = terminal()
    trainer.is_global_zero = False
    bar.on_train_start(trainer, TASK)
    bar.on_train_batch_end(trainer, TASK, None, None, 0)
    bar.on_validation_start(trainer, TASK)
    bar.on_validation_end(trainer, TASK)
    bar.teardown(trainer, TASK, "fit")
    assert screen.getvalue() == ""
