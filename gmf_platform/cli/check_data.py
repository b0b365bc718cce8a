"""check-data: open every sample of a data set, and tell what is wrong with it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmf_platform.cli.arguments import Arguments, VerbParser, parse_arguments
from gmf_platform.cli.config_check import checked
from gmf_platform.cli.fit import run_name
from gmf_platform.cli.precheck import check_data
from gmf_platform.cli.progress_bar import progress_bar
from gmf_platform.errors import ExitCode, UserError

if TYPE_CHECKING:
    from datamodules.base import BaseDataModule
    from datamodules.checking import Report

__all__ = ["draw_sample", "run"]

_SPLITS = ("training", "validation")
_TILES = 12


def run(verb: str, argv: Sequence[str]) -> int:
    """Run the verb; see ``check-data --help``."""
    arguments = parse_arguments(_parser(verb), argv)
    options = arguments.options
    configs = replace(arguments, overrides=[])
    sheet = options.sheet or Path(f"check-data-{run_name(configs)}.png")
    if not sheet.absolute().parent.is_dir():
        raise UserError(f"--sheet {sheet}: no folder {sheet.absolute().parent}")
    if options.sheet is not None and sheet.exists() and not options.overwrite:
        raise UserError(f"--sheet {sheet}: exists; name another file, or --overwrite")
    if options.workers is not None and options.workers < 0:
        raise UserError(f"--workers {options.workers}: 0 or more processes can open files")
    check_data(checked(arguments, needed=("data",)))

    data = _build(arguments)
    workers = data.num_workers if options.workers is None else options.workers
    reports = _inspect(data, workers)
    _print(reports, data)
    if reports["training"].sound:
        _write_sheet(sheet, data, reports["training"])
        print(f"\npictures     {sheet}")
    problems = sum(report.num_problems for report in reports.values())
    print(f"problems     {problems}")
    return ExitCode.WRONG_INPUT if problems else ExitCode.DONE


def _parser(verb: str) -> VerbParser:
    parser = VerbParser(verb, "Open every image and mask of a data set; exit code 2 if any is bad.")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes; default: data.num_workers"
    )
    parser.add_argument(
        "--sheet",
        type=Path,
        metavar="FILE.png",
        help="contact sheet to write; default: check-data-NAME.png here, the newest",
    )
    parser.add_argument("--overwrite", action="store_true", help="a sheet that --sheet names")
    return parser


def _build(arguments: Arguments) -> "BaseDataModule":
    from gmf_platform.cli.experiment import Experiment

    return Experiment(arguments).build_data()


def _inspect(data: "BaseDataModule", workers: int) -> dict[str, "Report"]:
    from datamodules.checking import inspect_all

    reports = {}
    for split in _SPLITS:
        with progress_bar(split, "opened") as progress:
            reports[split] = inspect_all(
                data.inspectable(split), workers=workers, progress=progress
            )
    return reports


def _print(reports: Mapping[str, "Report"], data: "BaseDataModule") -> None:
    from datamodules.checking import class_table

    for split, report in reports.items():
        first, *lines = report.lines()
        print(f"{split:<13}{first}")
        print("".join(f"  {line}\n" for line in lines), end="")
    print()
    print("\n".join(class_table(reports, data.class_names)))


def _write_sheet(path: Path, data: "BaseDataModule", report: "Report") -> None:
    """Draw sound samples, evenly spaced over the training split."""
    import numpy as np
    from PIL import Image

    from gmf_platform.evaluation.drawing import contact_sheet, palette

    colours = palette(len(data.class_names))
    count = min(_TILES, len(report.sound))
    picked = np.linspace(0, len(report.sound) - 1, count).round().astype(int)
    split = data.inspectable("training")
    tiles = [draw_sample(split, report.sound[i], colours) for i in picked]
    legend = [
        (name, colours[label])
        for label, name in enumerate(data.class_names)
        if report.images_with[label]
    ]
    Image.fromarray(contact_sheet(tiles, legend)).save(path)


def draw_sample(split: Any, index: int, colours: Any) -> tuple[str, Any]:
    """Name and picture of a sample of an inspectable split, its targets drawn on it."""
    from gmf_platform.evaluation.drawing import draw_truth

    image, targets = split.read(index)
    return split.name(index), draw_truth(image, targets, colours)
