"""Scores of single classes, and scalars that belong together, as TensorBoard shows them."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from gmf_platform.callbacks.logger import RunLogger
from gmf_platform.evaluation.charts import confusion_chart, score_chart
from gmf_platform.evaluation.class_report import ClassReport, most_frequent
from gmf_platform.evaluation.class_titles import titled

__all__ = ["Charts", "layout_of"]


class Charts(Callback):
    """Writes to TensorBoard, after each validation of a fit, what the score of each class is.

    A picture of bars for each score, and the confusion matrix where it is known; of the 20 classes
    that are most frequent in the truth, the scores as scalars and precision over recall. And once a
    layout of scalars that belong together.

    Args:
        classes: write the scores of classes.
    """

    def __init__(self, classes: bool = True) -> None:
        super().__init__()
        self.classes = classes

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lay out the scalars."""
        for logger in _loggers(trainer):
            logger.set_layout(layout_of(pl_module))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw and log the scores of the classes."""
        wanted = self.classes and trainer.state.fn == "fit" and not trainer.sanity_checking
        if not wanted or not trainer.is_global_zero:
            return
        for name, task in pl_module.parts():  # type: ignore[operator]
            report = task.class_report()
            if report is None:
                continue
            titles = titled(task.class_names)
            for logger in _loggers(trainer):
                # Lightning puts the scores at the number of the last step, from 0.
                _Page(logger, name, titles, trainer.global_step - 1).write(report)


class _Page:
    """The classes of a task at a step."""

    def __init__(self, logger: RunLogger, task: str, class_names: Sequence[str], step: int) -> None:
        self.logger, self.task, self.names, self.step = logger, task, class_names, step

    def write(self, report: ClassReport) -> None:
        for score, values in report.scores.items():
            chart = score_chart(self.names, values, report.counts)
            self._picture(f"classes_{score}", chart)
            self._scalars(score, values, most_frequent(report.counts))
        if report.confusion is not None:
            self._picture("confusion", confusion_chart(self.names, report.confusion))
        for kind, curves in report.curves.items():
            for label, curve in curves.items():
                tag = f"{self._joined(kind)}/{self._class(label)}"
                self.logger.add_curve(tag, curve, step=self.step)

    def _picture(self, title: str, picture: Any) -> None:
        tag = "/".join(filter(None, ("val", self.task, title)))
        self.logger.add_picture(tag, picture, step=self.step)

    def _scalars(self, score: str, values: Sequence[float], labels: Sequence[int]) -> None:
        group = f"val_{self._joined(score)}"  # behind `val` in TensorBoard's order
        named = {f"{group}/{self._class(i)}": values[i] for i in labels}
        known = {tag: value for tag, value in named.items() if not math.isnan(value)}
        self.logger.log_metrics(known, step=self.step)

    def _joined(self, *words: str) -> str:
        return "_".join(filter(None, (self.task, *words)))

    def _class(self, label: int) -> str:
        return self.names[label].replace("/", "-")  # which would begin another group


def layout_of(task: Any) -> dict[str, dict[str, list[str]]]:
    """Categories of charts, each of scalars whose tags regular expressions tell.

    Of a task: losses, main scores, learning rates and magnitudes. Of joint training a category for
    each task, with its losses, its main score and the cosines between its gradient and the others'.

    Args:
        task: a single one, or joint training.
    """
    names = [name for name, _ in task.parts() if name]
    own = {
        "scores": [f"^val/{name}$" for name in task.headline],
        "learning rate": ["^lr/"],
        "gradient norm": ["^gradient_norm/"],
        "update ratio": ["^update_ratio/"],
    }
    if not names:
        return {"training": {"losses": ["^train/"], **own}}
    joint = {
        "gradient norm on the backbone": ["^train/[^/]+/gradient_norm$"],
        "gradient cosine": ["^train/cosine/"],
        "weight": ["^train/[^/]+/weight$"],
    }
    return dict(_of_tasks(task)) | {"all tasks": {"loss": ["^train/loss$"], **own, **joint}}


def _of_tasks(joint: Any) -> Iterator[tuple[str, dict[str, list[str]]]]:
    for name, task in joint.parts():
        plain = re.escape(name)
        charts = {
            "losses": [f"^train/{plain}/loss"],
            "main score": [f"^val/{plain}/{task.main_score}$"],
            "gradient cosine": [f"^train/cosine/({plain}_.*|.*_{plain})$"],
        }
        yield name, charts


def _loggers(trainer: Trainer) -> Iterator[RunLogger]:
    return (logger for logger in trainer.loggers if isinstance(logger, RunLogger))
