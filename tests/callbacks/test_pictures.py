from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from gmf_platform.callbacks import Pictures
from gmf_platform.distributed.order import EvalBatches
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
        val_dataloaders=None,
    )


class Loader(list):
    """Batches of numbers of samples."""

    def __init__(self, batches, rank=0, world_size=1):
        self.dataset = range(sum(map(len, batches)))
        self.batches = EvalBatches(batches, rank=rank, world_size=world_size)
        super().__init__(self.batches.batches)


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


def first_row(array, grey):
    """Of those that are mostly of a grey."""
    return np.flatnonzero((np.abs(array - grey).max(axis=2) <= 1).sum(axis=1) > 100)[0]


def test_images_evenly_spaced_with_truth_and_prediction(trainer, tmp_path):
    """The first and the last one, and between them; the order of the batches is another's affair."""
    trainer.val_dataloaders, trainer.num_val_batches = Loader([[3, 4], [0, 1], [2]]), [3]
    callback = Pictures(count=3)
    for _ in range(2):  # the same ones each time
        validate(callback, trainer, batch(130, 170), batch(50, 70), batch(90))
        drawn = sheet(tmp_path)
        greys = (50, 70, 90, 130, 170)
        assert [has_grey(drawn, grey) for grey in greys] == [True, False, True, False, True]
        assert first_row(drawn, 50) < first_row(drawn, 90) < first_row(drawn, 170)


def test_images_of_a_part_of_the_split(trainer, tmp_path):
    """What limit_val_batches leaves out is not waited for."""
    trainer.val_dataloaders, trainer.num_val_batches = Loader([[0], [1], [2], [3]]), [2]
    validate(Pictures(count=2), trainer, batch(50), batch(90))
    assert [has_grey(sheet(tmp_path), grey) for grey in (50, 90)] == [True, True]


def test_images_of_all_processes(trainer, tmp_path, monkeypatch):
    """The same ones as one process takes, in the same order."""
    groups = [[0], [1], [2], [3]]
    one, other = SimpleNamespace(**vars(trainer)), trainer
    one.val_dataloaders, one.num_val_batches = Loader(groups, 0, 2), [2]
    other.val_dataloaders, other.num_val_batches = Loader(groups, 1, 2), [2]
    sent = []
    monkeypatch.setattr("gmf_platform.callbacks.pictures.to_first", sent.append)
    validate(Pictures(count=3), other, batch(70), batch(170))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("gmf_platform.callbacks.pictures.to_first", lambda own: [own, *sent])
    validate(Pictures(count=3), one, batch(50), batch(90))
    together = sheet(tmp_path)
    trainer.val_dataloaders, trainer.num_val_batches = Loader(groups), [4]
    monkeypatch.undo()
    validate(Pictures(count=3), trainer, batch(50), batch(70), batch(90), batch(170))
    assert np.array_equal(together, sheet(tmp_path))


def test_the_first_images_of_a_loader_of_someone_else(trainer, tmp_path):
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
