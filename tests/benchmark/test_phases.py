import time

import pytest
import torch

from gmf_platform.benchmark.phases import LOOP, PhaseClock, StepTimes

CPU = torch.device("cpu")


def test_each_moment_is_of_the_innermost_phase():
    clock = PhaseClock(CPU)
    clock.take()
    with clock.profile("[LightningModule]SegmentationTask.optimizer_step"):
        time.sleep(0.02)
        with clock.profile("[Strategy]DDP.training_step"):
            time.sleep(0.03)
            with clock.profile("[Callback]Guard{'mode': 'raise'}.on_before_backward"):
                time.sleep(0.04)
        clock.timed(time.sleep, "logging")(0.05)
    time.sleep(0.01)
    seconds = clock.take()
    slept = {
        "optimiser": 0.02,
        "forward and losses": 0.03,
        "Guard": 0.04,
        "logging": 0.05,
        LOOP: 0.01,
    }
    assert seconds.keys() == slept.keys()
    assert all(seconds[name] >= least for name, least in slept.items())
    assert LOOP not in clock.take() or clock.take()[LOOP] < 0.01  # what was taken is gone


def test_an_error_leaves_no_phase_behind():
    clock = PhaseClock(CPU)
    with (
        pytest.raises(RuntimeError),
        clock.profile("[Strategy]DDP.backward"),
        clock.profile("run_training_batch"),
    ):
        raise RuntimeError
    clock.take()
    time.sleep(0.01)
    assert list(clock.take()) == [LOOP]


def test_logged_steps_weigh_as_much_as_in_a_run():
    times = StepTimes(50)
    times.ordinary = [{"forward": 1.0}, {"forward": 3.0}]
    times.logged = [{"forward": 2.0, "logging": 5.0}]
    assert times.mean() == pytest.approx({"forward": 2.0, "logging": 0.1})
