"""compare: runs side by side."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from gmf_platform.cli.arguments import PlainParser, config_of
from gmf_platform.cli.compare_tables import as_csv, as_latex, as_text
from gmf_platform.cli.compared_runs import grouped, read_run
from gmf_platform.errors import ExitCode

__all__ = ["run"]


def run(verb: str, argv: Sequence[str]) -> int:
    """Run the verb; see ``compare --help``."""
    options = _parser(verb).parse_args(argv)
    for folder in options.runs:
        config_of(folder)
    runs = [read_run(folder, options.metric) for folder in dict.fromkeys(options.runs)]
    groups = grouped(runs)
    if options.csv:
        as_csv(groups, sys.stdout)
    elif options.latex:
        print(as_latex(groups))
    else:
        print(as_text(groups, width=shutil.get_terminal_size().columns))
    return ExitCode.DONE


def _parser(verb: str) -> PlainParser:
    parser = PlainParser(
        verb,
        "Runs side by side: the keys of their configs that differ, and what came of them. Runs "
        "that differ by their seed alone are one column: mean and standard deviation.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs")
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="beside checkpoint.monitor, e.g. val/macc",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="a row for each column of the table")
    form.add_argument("--latex", action="store_true", help="likewise; scores in per cent")
    return parser
