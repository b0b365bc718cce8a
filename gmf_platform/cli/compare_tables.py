"""Compared runs as a table: for the terminal, for other programs, for a paper."""

import csv
from collections.abc import Iterator, Sequence
from typing import TextIO

from gmf_platform.cli.compared_runs import Figure, Group, differing_keys

__all__ = ["as_csv", "as_latex", "as_text"]

_COUNTS = ("steps", "best step")
_ABSENT = "-"


def as_text(groups: Sequence[Group], *, width: int) -> str:
    """A row for each key and figure, a column for each group; as many columns as fit beside.

    Args:
        groups: what to compare.
        width: of the terminal, characters.
    """
    titles = ["", *differing_keys(groups), "status", "git", *_figure_titles(groups)]
    columns = [_column(group, titles) for group in groups]
    first = max(map(len, titles))
    tables, taken = [[titles]], first
    for column in columns:
        own = max(map(len, column)) + 2
        if taken + own > width and len(tables[-1]) > 1:
            tables.append([titles])
            taken = first
        tables[-1].append(column)
        taken += own
    return "\n\n".join(_aligned(table) for table in tables)


def _column(group: Group, titles: Sequence[str]) -> list[str]:
    config = group.config
    fixed = {"": group.name, "status": group.status, "git": group.git or _ABSENT}
    cells = []
    for title in titles:
        figure = group.figure(title)
        if figure is not None:
            cells.append(_shown(title, figure))
        else:
            cells.append(fixed.get(title) or config.get(title, _ABSENT))
    return cells


def _aligned(columns: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in columns]
    rows = zip(*columns, strict=True)
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _figure_titles(groups: Sequence[Group]) -> list[str]:
    """The figures that any run has, in their order, with what there is of each run at the end."""
    found = dict.fromkeys(t for group in groups for run in group.runs for t in run.figures)
    last = [title for title in ("steps", "hours") if title in found]
    return [title for title in found if title not in last] + last


def _shown(title: str, figure: Figure) -> str:
    form = ".0f" if title in _COUNTS else ".2f" if title == "hours" else ".4f"
    spread = "" if figure.spread is None else f" ± {figure.spread:{form}}"
    return f"{figure.mean:{form}}{spread}"


def as_csv(groups: Sequence[Group], file: TextIO) -> None:
    """A row for each group: number of seeds, status, git, differing keys, means and spreads."""
    keys, figures = differing_keys(groups), _figure_titles(groups)
    table = csv.writer(file, lineterminator="\n")
    columns = [column for title in figures for column in (title, f"{title} std")]
    table.writerow(["run", "seeds", "status", "git", *keys, *columns])
    for group in groups:
        config = group.config
        found = [group.figure(title) for title in figures]
        values = [x for f in found for x in (("", "") if f is None else (f.mean, f.spread))]
        cells = [group.name, len(group.runs), group.status, group.git]
        table.writerow([*cells, *(config.get(key, "") for key in keys), *values])


def as_latex(groups: Sequence[Group]) -> str:
    """A tabular (booktabs): a row for each group, its differing keys, scores in per cent."""
    keys = differing_keys(groups)
    figures = [t for t in _figure_titles(groups) if t.startswith(("best val/", "test/"))]
    titles = ["run", *(key.removesuffix(".class_path").rpartition(".")[2] for key in keys)]
    titles += [title.removeprefix("best ") for title in figures]
    rows = [
        [group.name, *(_brief(key, group.config.get(key, _ABSENT)) for key in keys)]
        for group in groups
    ]
    lines = [rf"\begin{{tabular}}{{l{'l' * len(keys)}{'r' * len(figures)}}}", r"\toprule"]
    lines += [" & ".join(map(_escaped, titles)) + r" \\", r"\midrule"]
    for group, row in zip(groups, rows, strict=True):
        cells = [*map(_escaped, row), *_latex_figures(group, figures)]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _brief(key: str, value: str) -> str:
    """A class by its own name."""
    return value.rpartition(".")[2] if key.endswith(".class_path") else value


def _latex_figures(group: Group, titles: Sequence[str]) -> Iterator[str]:
    for title in titles:
        figure = group.figure(title)
        factor = 1 if "loss" in title else 100
        if figure is None:
            yield "--"
        elif figure.spread is None:
            yield f"${factor * figure.mean:.2f}$"
        else:
            yield rf"${factor * figure.mean:.2f} \pm {factor * figure.spread:.2f}$"


def _escaped(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "&%$#_{}" else letter for letter in text)
