import errno
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from gmf_platform.callbacks import RunLogger
from gmf_platform.evaluation.precision_recall import THRESHOLDS, curve_of_counts


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


@pytest.fixture
def read(tmp_path):
    def read():
        events = EventAccumulator(str(tmp_path), size_guidance={"images": 0, "tensors": 0})
        return events.Reload()

    return read


def test_texts_are_of_the_step_that_training_goes_on_at(tmp_path, read):
    for step, text in ((0, "a: 1\nb: 2"), (4, "a: 3")):
        logger = RunLogger(tmp_path, {"run/config": text})
        logger.resume_at(step)
        logger.finalize("success")
    shown = [
        (e.step, e.tensor_proto.string_val[0]) for e in read().Tensors("run/config/text_summary")
    ]
    assert sorted(shown) == [(0, b"    a: 1\n    b: 2"), (4, b"    a: 3")]


@pytest.mark.parametrize(("photos", "kind", "error"), [(False, "PNG", 0), (True, "JPEG", 3)])
def test_pictures(tmp_path, read, photos, kind, error):
    picture = np.zeros((20, 30, 3), np.uint8)
    picture[:, :, 0] = np.arange(30) * 8
    logger = RunLogger(tmp_path)
    logger.add_picture("val/a", picture, step=5, photos=photos)
    logger.save()
    (event,) = read().Images("val/a")
    assert (event.step, event.width, event.height) == (5, 30, 20)
    shown = Image.open(BytesIO(event.encoded_image_string))
    assert shown.format == kind
    assert np.abs(np.asarray(shown).astype(int) - picture).mean() <= error


def test_curves_and_the_layout(tmp_path, read):
    curve = curve_of_counts(*np.random.default_rng(0).integers(0, 9, (2, THRESHOLDS)))
    logger = RunLogger(tmp_path)
    logger.add_curve("iou50/cat", curve, step=2)
    logger.set_layout({"seg": {"losses": ["^train/seg/loss", "^train/loss$"]}})
    logger.save()
    events = read()
    (event,) = events.Tensors("iou50/cat")
    assert event.step == 2
    shown = np.reshape(event.tensor_proto.float_val, (6, THRESHOLDS))
    np.testing.assert_allclose(shown, np.stack(curve), rtol=1e-6)
    (config,) = events.Tensors("custom_scalars__config__")
    (category,) = Layout.FromString(config.tensor_proto.string_val[0]).category
    (chart,) = category.chart
    assert (category.title, chart.title) == ("seg", "losses")
    assert list(chart.multiline.tag) == ["^train/seg/loss", "^train/loss$"]


def test_a_full_disk_is_said_with_the_folder(tmp_path, monkeypatch):
    logger = RunLogger(tmp_path)
    logger.log_metrics({"a": 1.0}, step=0)

    def fail():
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(logger.experiment, "flush", fail)
    for write in (logger.save, lambda: logger.finalize("failed")):
        with pytest.raises(OSError, match="No space left on device") as error:
            write()
        assert error.value.filename == str(tmp_path)
