"""How often each value occurs in masks, and whether that leaves enough to learn from."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from datamodules.labels import IGNORE, LabelCode, Values

__all__ = ["evenly_spaced", "histogram_lines", "value_histogram", "what_is_wrong"]

_MAX_IGNORED = 0.5
_LINES = 20


def evenly_spaced(paths: Sequence[Path], count: int) -> list[Path]:
    """At most ``count`` of the paths, spread over all of them."""
    picked = np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)
    return [paths[i] for i in picked]


def value_histogram(masks: Iterable[Values]) -> dict[int, float]:
    """Share of each value in all pixels of the masks (H_i, W_i), by value."""
    counts: Counter[int] = Counter()
    for mask in masks:
        values, found = np.unique(mask, return_counts=True)
        counts.update(dict(zip(values.tolist(), found.tolist(), strict=True)))
    total = counts.total()
    return {value: counts[value] / total for value in sorted(counts)}


def histogram_lines(
    histogram: Mapping[int, float], code: LabelCode, class_names: Sequence[str]
) -> list[str]:
    """The values, their shares and what they mean, the most frequent first."""
    lines = []
    for value in sorted(histogram, key=lambda v: -histogram[v])[:_LINES]:
        label = code.label_of(value)
        match label:
            case None:
                meaning = "outside the classes"
            case _ if label == IGNORE:
                meaning = "ignored"
            case _:
                meaning = class_names[label]
        lines.append(f"  {code.name(value):<16}{histogram[value]:>8.2%}  {meaning}")
    if len(histogram) > _LINES:
        lines.append(f"  ... and {len(histogram) - _LINES} more values")
    return lines


def what_is_wrong(histogram: Mapping[int, float], code: LabelCode) -> list[str]:
    """Reasons not to train on masks of this histogram, each with what to change; often none."""
    labels = {value: code.label_of(value) for value in histogram}
    ignored = sum(share for value, share in histogram.items() if labels[value] == IGNORE)
    outside = [code.name(value) for value, label in labels.items() if label is None]
    classes = {label for label in labels.values() if label not in (None, IGNORE)}
    wrong = []
    if outside:
        where = "data.palette" if code.is_colour else "data.classes"
        wrong.append(f"{where} has no place for {', '.join(outside[:5])}")
    if len(classes) < 2:
        wrong.append(f"{len(classes)} of {len(code.classes)} classes occur")
    if ignored > _MAX_IGNORED:
        wrong.append(f"{ignored:.0%} of the pixels are ignored")
    return wrong and [*wrong, *_remedies(histogram, code, outside)]


def _remedies(histogram: Mapping[int, float], code: LabelCode, outside: Sequence[str]) -> list[str]:
    """What to change, by what is in the masks."""
    if code.is_colour:
        two_values = one_too_many = zero_ignored = False
    else:
        two_values = set(histogram) == {0, IGNORE}
        one_too_many = 0 in code.classes and outside == [str(len(code.classes))]
        zero_ignored = bool(histogram.get(0)) and 0 in code.ignored
    remedies = []
    if two_values:
        remedies.append(
            "if 255 stands for a class, say so: "
            "data.palette {background: [0, 0, 0], object: [255, 255, 255]}, "
            "data.classes null, data.zero_is class, data.ignore_value null"
        )
    elif one_too_many:
        remedies.append("if 0 has no class: data.zero_is ignore; else a name is missing")
    elif zero_ignored:
        remedies.append(
            "if 0 is a class: datamodules.SegmentationFiles with zero_is class, its name first"
        )
    if not outside:
        remedies.append("if it is meant so: data.check_masks 0 trains without this check")
    return remedies
