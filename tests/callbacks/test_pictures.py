from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from gmf_platform.callbacks import Pictures
from gmf_platform.evaluation.drawing import Compared
from gmf_platform.tasks.base import unpadded


class Task:
    class_names = ("grass", "water")

    def compared(self, batch, outputs, index):
        """The image three times, each in one of the sheet's columns."""
        image = unpadded(batch, index)
        return Compared(np.concatenate([image.repeat(2, 0).repeat(2, 1)] * 3, 1), {outputs})

    def pictured(self, batch, outputs):
        yield "", self, batch, outputs


class Joint:
    """Two tasks that have seen the same images, and found different labels."""

    def pictured(self, batch, outputs):
        yield "one", TASK, batch, 0
        yield "other", TASK, batch, 1


TASK = Task()


@pytest.fixture
def trainer(tmp_path):
    return SimpleNamespace(
        default_root_dir=tmp_path,
        is_global_zero=True,
        sanity_checking=False,
        loggers=[],
        global_step=3,
        state=SimpleNamespace(fn="fit"),
    )


def batch(*greys):
    """Images of one grey each, 40 x 60 in a frame of 64 x 64."""
    images = torch.zeros(len(greys), 3, 64, 64, dtype=torch.uint8)
    for image, grey in zip(images, greys, strict=True):
        image[:, :40, :60] = grey
    return {
        "images": images,
        "sizes": torch.tensor([[40, 60]] * len(greys)),
        "ids": [str(grey) for grey in greys],
    }


def validate(callback, trainer, *batches, task=None):
    task = task or TASK
    callback.on_validation_start(trainer, task)
    for number, part in enumerate(batches):
        callback.on_validation_batch_end(trainer, task, 1, part, number)
    callback.on_validation_end(trainer, task)


def sheet(folder):
    return np.asarray(Image.open(folder / "pictures" / "validation.png")).astype(int)


def has_grey(array, grey):
    return bool((np.abs(array - grey).max(axis=2) <= 1).sum() > 1000)


def test_the_first_images_with_truth_and_prediction(trainer, tmp_path):
    callback = Pictures(count=3)
    validate(callback, trainer, batch(50, 90), batch(130, 170))
    drawn = sheet(tmp_path)
    assert [has_grey(drawn, grey) for grey in (50, 90, 130, 170)] == [True, True, True, False]
    assert not has_grey(drawn, 0)  # the frame around the image is cut off
    assert drawn.shape[0] >= 3 * 80
    assert drawn.shape[1] >= 3 * 120
    assert callback.path == tmp_path / "pictures" / "validation.png"


def test_the_newest_replaces(trainer, tmp_path):
    callback = Pictures(count=1)
    validate(callback, trainer, batch(50))
    validate(callback, trainer, batch(170))
    assert has_grey(sheet(tmp_path), 170)
    assert not has_grey(sheet(tmp_path), 50)


@pytest.mark.parametrize("setting", [{"is_global_zero": False}, {"sanity_checking": True}])
def test_other_processes_and_the_first_check_draw_nothing(trainer, tmp_path, setting):
    vars(trainer).update(setting)
    validate(Pictures(), trainer, batch(50))
    assert list(tmp_path.iterdir()) == []


def test_none_wanted(trainer, tmp_path):
    validate(Pictures(count=0), trainer, batch(50))
    assert list(tmp_path.iterdir()) == []


def test_a_sheet_for_each_of_several_tasks(trainer, tmp_path):
    validate(Pictures(count=1), trainer, batch(50), batch(90), task=Joint())
    folder = tmp_path / "pictures"
    assert {path.name for path in folder.iterdir()} == {
        "validation_one.png",
        "validation_other.png",
    }
    drawn = [np.asarray(Image.open(path)).astype(int) for path in sorted(folder.iterdir())]
    assert [[has_grey(x, grey) for grey in (50, 90)] for x in drawn] == [[True, False]] * 2
    assert not np.array_equal(*drawn)  # the legends name what each has found
