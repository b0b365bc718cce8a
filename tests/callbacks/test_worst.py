from types import SimpleNamespace

import numpy as np
import pytest

from gmf_platform.callbacks import RunLogger, Worst
from gmf_platform.errors import UserError
from gmf_platform.evaluation.drawing import Compared
from gmf_platform.evaluation.per_sample import decisive_score


class Task:
    """Images are scores in per cent, and drawn in a grey of that number."""

    class_names = ("grass", "water")

    def parts(self):
        yield "", self

    def pictured(self, batch, outputs):
        yield "", self, batch, outputs

    def sample_scores(self, batch, outputs, index):
        return {"iou": batch["scores"][index] / 100, "worst_class": "water"}

    def compared(self, batch, outputs, index):
        outputs.append(batch["scores"][index])
        grey = np.full((60, 180, 3), batch["scores"][index], np.uint8)
        return Compared(grey, {1})


class Logger(RunLogger):
    def __init__(self):
        self.pictures = []

    def add_picture(self, tag, picture, *, step, photos):
        self.pictures.append((tag, picture, step))


def make_trainer(rank=0, *, sanity_checking=False, verb="fit", world_size=1):
    return SimpleNamespace(
        global_rank=rank,
        world_size=world_size,
        sanity_checking=sanity_checking,
        global_step=7,
        state=SimpleNamespace(fn=verb),
        loggers=[Logger()],
    )


def validate(callback, trainer, *batches):
    """Returns the images that were drawn."""
    drawn = []
    trainer.num_val_batches = [len(batches)]
    callback.on_validation_start(trainer, Task())
    for number, scores in enumerate(batches):
        batch = {"ids": [str(score) for score in scores], "scores": scores}
        callback.on_validation_batch_end(trainer, Task(), drawn, batch, number)
    callback.on_validation_end(trainer, Task())
    return drawn


def greys(trainer):
    """Greys of the tiles of the one sheet, in the order of reading."""
    ((tag, picture, step),) = trainer.loggers[0].pictures
    assert (tag, step) == ("val/worst", 6)
    centres = picture[18 + 120 :: 258, 360::720, 0]
    return [int(grey) for grey in centres.flatten() if grey < 255]


def test_the_worst_come_first():
    trainer = make_trainer()
    validate(Worst(count=4), trainer, [90, 30, 50], [70, 20], [100, 80, 40])
    assert greys(trainer) == [20, 30, 40, 50]


def test_only_what_may_be_among_them_is_drawn():
    drawn = validate(Worst(count=2), make_trainer(), [10, 20], [90, 80, 70], [15])
    assert drawn == [10, 20, 15]


def test_what_has_no_score_is_passed_over():
    trainer = make_trainer()
    validate(Worst(count=4), trainer, [float("nan"), 30])
    assert greys(trainer) == [30]


@pytest.mark.parametrize(("world_size", "expected"), [(1, [10, 40, 70]), (2, [10, 70])])
def test_of_many_images_a_part_is_scored(world_size, expected):
    """Evenly spaced: of nine batches every third, or of two processes' every sixth."""
    trainer = make_trainer(world_size=world_size)
    validate(Worst(count=9, among=3), trainer, *([score] for score in range(10, 100, 10)))
    assert greys(trainer) == expected


@pytest.mark.parametrize("setting", [{"sanity_checking": True}, {"verb": "validate"}])
def test_nothing_but_validations_of_a_fit(setting):
    trainer = make_trainer(**setting)
    assert validate(Worst(), trainer, [10]) == []
    assert trainer.loggers[0].pictures == []


def test_none_wanted():
    trainer = make_trainer()
    assert validate(Worst(count=0), trainer, [10]) == []
    assert trainer.loggers[0].pictures == []


def test_those_of_all_processes(run_processes):
    """Also where one has seen none at all."""
    shares = [[[90, 30]], [[10, 20], [60]], []]

    def work(rank):
        trainer = make_trainer(rank)
        validate(Worst(count=3), trainer, *shares[rank])
        return greys(trainer) if rank == 0 else trainer.loggers[0].pictures

    assert run_processes(work, 3) == [[10, 20, 30], [], []]


def test_what_decides():
    assert decisive_score({"objects": 3, "box_ap": 0.5, "mask_ap": 0.25}) == ("mask_ap", 0.25)
    assert decisive_score({"box_ap": float("nan")}) is None
    assert decisive_score({}) is None


def test_of_no_images():
    with pytest.raises(UserError, match=r"worst\.among: expected 1 or more, not 0"):
        Worst(among=0)


def test_by_loss_the_largest_is_first():
    """Where an image has none, by its score, which is then behind."""
    losses = {10: 0.5, 20: 2.5, 30: 1.5, 40: float("nan")}

    class TaskWithLosses(Task):
        def sample_scores(self, batch, outputs, index):
            row = super().sample_scores(batch, outputs, index)
            return row | {"loss": losses[batch["scores"][index]]}

    callback, trainer, task = Worst(count=3, by="loss"), make_trainer(), TaskWithLosses()
    trainer.num_val_batches = [1]
    callback.on_validation_start(trainer, task)
    batch = {"ids": list("abcd"), "scores": list(losses)}
    callback.on_validation_batch_end(trainer, task, [], batch, 0)
    captions = [seen.caption for seen in callback._seen[""]]
    assert captions == ["b  loss 2.500 water", "c  loss 1.500 water", "a  loss 0.500 water"]
