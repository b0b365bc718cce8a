import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gmf_platform.callbacks import RunLogger


@pytest.fixture
def log(tmp_path, monkeypatch):
    """Log steps in an event file of their own, as another process would do later."""
    names = iter("abcdefgh")

    def write(steps, *, value, resume=None):
        logger = RunLogger(tmp_path)
        if resume is not None:
            logger.resume_at(resume)
        for step in steps:
            logger.log_metrics({"train/loss": value + step}, step=step)
        logger.save()
        logger.finalize("success")
        (path,) = tmp_path.glob("events.out.tfevents.[0-9]*")
        path.rename(tmp_path / f"events.out.tfevents.{next(names)}")  # in order of their writing

    return write


def curve(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("train/loss")]


def test_files_lie_in_the_run_itself(log, tmp_path):
    log(range(2), value=0)
    assert [path.name for path in tmp_path.iterdir()] == ["events.out.tfevents.a"]
    assert curve(tmp_path) == [(0, 0), (1, 1)]


def test_what_a_killed_run_logged_too_far_is_dropped(log, tmp_path):
    log(range(6), value=100)
    log(range(3, 6), value=200, resume=3)
    expected = [(step, 100 + step) for step in range(3)]
    assert curve(tmp_path) == expected + [(step, 200 + step) for step in range(3, 6)]


def test_killed_again_before_it_came_as_far(log, tmp_path):
    log(range(9), value=100)
    log(range(3, 5), value=200, resume=3)
    log(range(4, 9), value=300, resume=4)
    assert curve(tmp_path) == [
        *((step, 100 + step) for step in range(3)),
        (3, 203),
        *((step, 300 + step) for step in range(4, 9)),
    ]


def test_resume_behind_the_end_drops_nothing(log, tmp_path):
    log(range(3), value=0)
    log(range(3, 5), value=0, resume=3)
    assert curve(tmp_path) == [(step, step) for step in range(5)]


def test_a_step_is_logged_once(log, tmp_path):
    """Before it is saved by us, and by Lightning after it."""
    log([0, 1, 1, 2], value=0)
    assert curve(tmp_path) == [(step, step) for step in range(3)]
