"""sample-data: draw a small data set in an official layout."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from gmf_platform.cli.arguments import PlainParser
from gmf_platform.errors import ExitCode

__all__ = ["run"]


def run(verb: str, argv: Sequence[str]) -> int:
    """Run the verb; see ``sample-data --help``."""
    from datamodules.sample_data import Layout, write_sample

    parser = PlainParser(verb, "Draw textured shapes on textured grounds in an official layout.")
    parser.add_argument("layout", choices=get_args(Layout))
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--train", type=int, default=200, help="training images")
    parser.add_argument("--val", type=int, default=50, help="validation images")
    parser.add_argument("--size", type=int, default=128, help="of each side, pixels")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    write_sample(
        options.layout,
        options.directory,
        train=options.train,
        val=options.val,
        size=options.size,
        seed=options.seed,
        progress=_show if sys.stderr.isatty() else None,
    )
    print(f"{options.layout} sample: {options.directory}")
    return ExitCode.DONE


def _show(done: int, total: int) -> None:
    print(f"\r{done}/{total} images", end="\n" if done == total else "", file=sys.stderr)
