import math
import re
from types import SimpleNamespace

import numpy as np
import pytest

from gmf_platform.callbacks import Charts, RunLogger
from gmf_platform.callbacks.charts import layout_of
from gmf_platform.evaluation.class_report import ClassReport
from gmf_platform.evaluation.precision_recall import curve_of_recalls


class Logger(RunLogger):
    """Notes what it is given."""

    def __init__(self):
        self.pictures, self.curves, self.scalars, self.layouts = {}, {}, {}, []

    def add_picture(self, tag, picture, *, step):
        self.pictures[tag, step] = picture

    def add_curve(self, tag, curve, *, step):
        self.curves[tag, step] = curve

    def log_metrics(self, metrics, step):
        self.scalars |= {(tag, step): value for tag, value in metrics.items()}

    def set_layout(self, layout):
        self.layouts.append(layout)


class Task:
    headline = ("miou", "macc")
    main_score = "miou"

    def __init__(self, class_names=("grass", "water/sea", "sky"), report=None):
        self.class_names, self.report = class_names, report

    def parts(self):
        yield "", self

    def class_report(self):
        return self.report


class Joint:
    headline = ("score", "seg/miou", "seg_two/miou")

    def __init__(self, **tasks):
        self.tasks = tasks

    def parts(self):
        yield from self.tasks.items()


CURVE = curve_of_recalls(np.ones(101), np.full(101, 0.5), objects=3)


def report(**fields):
    counts, iou = [5, 9, 0], [0.25, 0.75, math.nan]
    return ClassReport(counts, {"iou": iou}, np.diag(counts), **fields)


@pytest.fixture
def trainer():
    return SimpleNamespace(
        is_global_zero=True,
        sanity_checking=False,
        global_step=3,
        state=SimpleNamespace(fn="fit"),
        loggers=[Logger()],
    )


def test_classes_of_a_task(trainer):
    Charts().on_validation_end(trainer, Task(report=report(curves={"probability": {1: CURVE}})))
    (logger,) = trainer.loggers
    assert set(logger.pictures) == {("val/classes_iou", 2), ("val/confusion", 2)}
    assert logger.scalars == {("val_iou/water-sea", 2): 0.75, ("val_iou/grass", 2): 0.25}
    assert logger.curves == {("probability/water-sea", 2): CURVE}


def test_classes_of_several_tasks(trainer):
    """One has not been scored, one knows of no confusion."""
    other = ClassReport([1, 1, 1], {"box_ap": [0.5, 0.5, 0.5]}, curves={"box_iou50": {0: CURVE}})
    joint = Joint(seg=Task(report=report()), det=Task(report=other), cls=Task())
    Charts().on_validation_end(trainer, joint)
    (logger,) = trainer.loggers
    assert {tag for tag, _ in logger.pictures} == {
        "val/seg/classes_iou",
        "val/seg/confusion",
        "val/det/classes_box_ap",
    }
    assert {tag.partition("/")[0] for tag, _ in logger.scalars} == {"val_seg_iou", "val_det_box_ap"}
    assert {tag for tag, _ in logger.curves} == {"det_box_iou50/grass"}


def test_only_the_most_frequent_have_curves_of_their_own(trainer):
    names = [f"class {i}" for i in range(30)]
    many = ClassReport(range(30), {"iou": [0.5] * 30})
    Charts().on_validation_end(trainer, Task(names, many))
    assert {tag for tag, _ in trainer.loggers[0].scalars} == {
        f"val_iou/class {i}" for i in range(10, 30)
    }


@pytest.mark.parametrize("setting", [{"sanity_checking": True}, {"is_global_zero": False}])
def test_other_processes_and_the_first_check_write_nothing(trainer, setting):
    vars(trainer).update(setting)
    Charts().on_validation_end(trainer, Task(report=report()))
    assert not trainer.loggers[0].pictures


def test_not_wanted(trainer):
    Charts(classes=False).on_validation_end(trainer, Task(report=report()))
    assert not trainer.loggers[0].pictures


TAGS = [
    "train/loss",
    "train/cosine/seg_seg_two",
    *(f"train/{n}/{x}" for n in ("seg", "seg_two") for x in ("loss_a", "gradient_norm", "weight")),
    *("val/score", "val/seg/miou", "val/seg/macc", "val/seg_two/miou"),
    *("lr/decay", "gradient_norm/all", "update_ratio/all"),
]


def matching(charts):
    return {
        t: [tag for tag in TAGS if any(re.search(x, tag) for x in r)] for t, r in charts.items()
    }


def test_a_category_for_each_task():
    layout = layout_of(Joint(seg=Task(), seg_two=Task()))
    assert list(layout) == ["seg", "seg_two", "all tasks"]
    assert matching(layout["seg"]) == {
        "losses": ["train/seg/loss_a"],
        "main score": ["val/seg/miou"],
        "gradient cosine": ["train/cosine/seg_seg_two"],
    }
    assert matching(layout["all tasks"]) == {
        "loss": ["train/loss"],
        "scores": ["val/score", "val/seg/miou", "val/seg_two/miou"],
        "learning rate": ["lr/decay"],
        "gradient norm": ["gradient_norm/all"],
        "update ratio": ["update_ratio/all"],
        "gradient norm on the backbone": ["train/seg/gradient_norm", "train/seg_two/gradient_norm"],
        "gradient cosine": ["train/cosine/seg_seg_two"],
        "weight": ["train/seg/weight", "train/seg_two/weight"],
    }


def test_the_layout_of_one_task(trainer):
    Charts(classes=False).on_fit_start(trainer, Task())
    ((category, charts),) = trainer.loggers[0].layouts[0].items()
    assert category == "training"
    assert list(charts) == ["losses", "scores", "learning rate", "gradient norm", "update ratio"]
    assert charts["scores"] == ["^val/miou$", "^val/macc$"]
