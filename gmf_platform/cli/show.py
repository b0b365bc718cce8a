"""show: a contact sheet of the images that a model is worst at."""

import csv
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmf_platform.cli.arguments import Arguments, PlainParser
from gmf_platform.errors import ExitCode, UserError

if TYPE_CHECKING:
    from datamodules.base import BaseDataModule
    from datamodules.checking import Inspectable

__all__ = ["Worst", "read_worst", "run"]

_SUFFIX = "_per_sample.csv"


def run(verb: str, argv: Sequence[str]) -> int:
    """Run the verb; see ``show --help``."""
    options = _parser(verb).parse_args(argv)
    if options.worst < 1:
        raise UserError(f"--worst {options.worst}: is no number of images")
    table, *others = _tables(options.source)
    worst = read_worst(table, number=options.worst, by=options.by)
    sheet = options.sheet or table.with_name(f"{table.stem.removesuffix('_per_sample')}_worst.png")
    if options.sheet is not None and sheet.exists() and not options.overwrite:
        raise UserError(f"--sheet {sheet}: exists; name another file, or --overwrite")
    _write(sheet, table, worst)
    for one in worst:
        print(f"{one.caption}  {one.path}")
    print(f"\npictures     {sheet}")
    print(f"scores       {table}")
    for other in others:
        print(f"others       {other}")
    return ExitCode.DONE


def _parser(verb: str) -> PlainParser:
    parser = PlainParser(
        verb,
        "A contact sheet of the images that a model is worst at, with their truth, from what "
        "`validate --run RUN` or `test --run RUN` has left in the run.",
    )
    parser.add_argument("source", type=Path, metavar="RUN_OR_CSV", help="a run, or its csv")
    parser.add_argument("--worst", type=int, default=50, metavar="N", help="images (default: 50)")
    parser.add_argument(
        "--by",
        metavar="COLUMN",
        help="what to sort by, the smallest first; of losses the largest (default: IoU, AP, or "
        "the probability of the true class)",
    )
    parser.add_argument(
        "--sheet", type=Path, metavar="FILE.png", help="to write; default: beside the csv"
    )
    parser.add_argument("--overwrite", action="store_true", help="a sheet that --sheet names")
    return parser


def _tables(source: Path) -> list[Path]:
    """The csv that is meant; of a run all that it has, the newest first.

    Raises:
        UserError: there is none.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UserError(f"{source}: no such run or file")
    tables = sorted(source.glob(f"*{_SUFFIX}"), key=lambda path: -path.stat().st_mtime_ns)
    if not tables:
        raise UserError(
            f"{source} holds no scores of single images yet: "
            f"python -m gmf_platform validate --run {source}"
        )
    return tables


@dataclass(frozen=True)
class Worst:
    """An image to show.

    Attributes:
        index: in its split.
        path: of its file.
        caption: its score, and what it was taken for or its worst class.
    """

    index: int
    path: str
    caption: str


def read_worst(table: Path, *, number: int, by: str | None = None) -> list[Worst]:
    """The worst images of a table, the worst first; those without a score are left out.

    Args:
        table: csv as `validate` writes it.
        number: of images at most.
        by: the column that decides; None: what the task is scored by.

    Raises:
        UserError: it is no such table, or has no such column.
    """
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = list(rows[0]) if rows else []
    if not {"index", "path"} <= {*columns}:
        raise UserError(f"{table}: is no table of single images' scores (index, path, ...)")
    from gmf_platform.evaluation.per_sample import DECISIVE

    column = by or next((name for name in DECISIVE if name in columns), "")
    if column not in columns:
        raise UserError(f"--by {column}: {table} has no such column. It has: {', '.join(columns)}")
    scored = [row for row in rows if row[column]]
    try:
        scored.sort(key=lambda row: float(row[column]), reverse="loss" in column)
    except ValueError:
        raise UserError(f"--by {column}: the column of {table} holds no numbers") from None
    return [Worst(int(r["index"]), r["path"], _caption(r, column)) for r in scored[:number]]


def _caption(row: Mapping[str, str], column: str) -> str:
    about = row.get("worst_class", "")
    if "predicted" in row:
        about = f"{row['truth']} > {row['predicted']}"
    return f"{float(row[column]):.3f} {about}".rstrip()


def _write(sheet: Path, table: Path, worst: Sequence[Worst]) -> None:
    from PIL import Image

    from gmf_platform.evaluation.drawing import contact_sheet, palette

    verb, _, rest = table.stem.removesuffix("_per_sample").partition("_")
    data = _data(table.parent, task=rest.lstrip("0123456789_"))
    if data is None:
        tiles, legend = [(one.caption, _image(one)) for one in worst], []
    else:
        split = data.inspectable(data.test_split if verb == "test" else "validation")
        colours = palette(len(data.class_names))
        tiles = [_drawn(split, one, colours, table) for one in worst]
        legend = list(zip(data.class_names, colours, strict=False))
    Image.fromarray(contact_sheet(tiles, legend)).save(sheet)


def _data(run: Path, *, task: str) -> "BaseDataModule | None":
    """The data of a run, in joint training of one task; None if the folder is no run."""
    config = run / "config.yaml"
    if not config.is_file():
        return None
    from gmf_platform.cli.experiment import Experiment

    data = Experiment(Arguments(Namespace(), [config], [])).build_data()
    tasks: Mapping[str, BaseDataModule] = getattr(data, "tasks", {})
    return tasks.get(task, data)


def _drawn(split: "Inspectable", one: Worst, colours: Any, table: Path) -> tuple[str, Any]:
    """Caption and picture of an image, its truth drawn on it."""
    from gmf_platform.cli.check_data import draw_sample

    name = split.name(one.index) if one.index < len(split) else ""
    if name != Path(one.path).name:
        raise UserError(
            f"{table}: image {one.index} was {one.path}, and is not any more: the data set has "
            "changed; validate again"
        )
    return f"{name}  {one.caption}", draw_sample(split, one.index, colours)[1]


def _image(one: Worst) -> Any:
    from datamodules.images import read_image

    return read_image(Path(one.path))
