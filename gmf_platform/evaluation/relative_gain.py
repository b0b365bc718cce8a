"""What joint training gains over single tasks, as one number."""

import json
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from gmf_platform.errors import UserError

__all__ = ["read_scores", "relative_gain"]


def read_scores(given: Mapping[str, float] | str, tasks: Collection[str]) -> dict[str, float]:
    """Scores of single-task training, from a config or from the json file that it names.

    Args:
        given: ``TASK/NAME`` -> value, or the file's name.
        tasks: those that are trained; scores of others are left out.

    Raises:
        UserError: the file cannot be read, a score is not a positive number, or a task has none.
    """
    scores: Any = given
    if isinstance(given, str):
        try:
            scores = json.loads(Path(given).read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"model.single_task: {given}: cannot be read: {error}") from None
    for name, value in scores.items():
        if not isinstance(value, int | float) or not value > 0:
            raise UserError(
                f"model.single_task: {name}: {value!r} is no score above 0 to compare with"
            )
    known = {name: value for name, value in scores.items() if name.partition("/")[0] in tasks}
    without = set(tasks) - {name.partition("/")[0] for name in known}
    if without:
        raise UserError(
            f"model.single_task: has no score of {min(without)}, such as {min(without)}/top1"
        )
    return known


def relative_gain(scores: Mapping[str, float], single: Mapping[str, float]) -> float:
    """How much better tasks are together than each alone, as a mean of relative gains.

    Delta_m of K.-K. Maninis et al., Attentive Single-Tasking of Multiple Tasks (CVPR 2019, arXiv
    1904.08918): 0.01 is one per cent better. Of a loss, less is better. Several scores of a task
    count as one, by their mean.

    Args:
        scores: ``TASK/NAME`` -> value.
        single: the same of single-task training, of at least one score of each task.

    Raises:
        UserError: joint training gives no score of such a name.
    """
    gains: dict[str, list[float]] = defaultdict(list)
    for name, alone in single.items():
        if name not in scores:
            raise UserError(
                f"model.single_task: {name}: joint training gives no such score; one of "
                f"{', '.join(sorted(scores))} would do"
            )
        sign = -1 if name.endswith("loss") else 1
        gains[name.partition("/")[0]].append(sign * (scores[name] - alone) / alone)
    means = [sum(values) / len(values) for values in gains.values()]
    return sum(means) / len(means)
