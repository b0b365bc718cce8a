"""shard-data: a classification set's images in tar shards, for shared file systems."""

import re
import time
from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gmf_platform.cli.arguments import PlainParser
from gmf_platform.cli.progress_bar import progress_bar
from gmf_platform.errors import ExitCode, UserError

if TYPE_CHECKING:
    from datamodules.shards import Written

__all__ = ["run"]

_SPLITS = {"train": "training", "val": "validation"}
_UNITS = {"K": 10**3, "M": 10**6, "G": 10**9}
_BINARY_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def run(verb: str, argv: Sequence[str]) -> int:
    """Run the verb; see ``shard-data --help``."""
    options = _parser(verb).parse_args(argv)
    for name in ("samples_per_shard", "workers"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be 1 or more")
    if options.seed < 0:
        raise UserError("--seed must be 0 or more")
    if not options.source.is_dir():
        raise UserError(f"shard-data: no folder {options.source}")
    if options.target.resolve().is_relative_to(options.source.resolve()):
        raise UserError(
            f"shard-data: {options.target} is in {options.source}: name a folder outside it, so "
            "that shards and images are not taken for each other"
        )

    from datamodules.base import available_cpus
    from datamodules.imagenet import ImageNet
    from datamodules.shards import write_shards

    data = ImageNet(
        str(options.source),
        val_fraction=options.val_fraction,
        val_labels=options.val_labels and str(options.val_labels.resolve()),
    )
    workers = options.workers or min(8, available_cpus())
    for split in dict.fromkeys(options.split):
        begun = time.perf_counter()
        with progress_bar(split, "written") as progress:
            written = write_shards(
                data.samples(_SPLITS[split]),
                options.target,
                split=split,
                class_names=data.class_names,
                name=options.layout,
                samples_per_shard=options.samples_per_shard,
                shard_bytes=options.shard_size,
                workers=workers,
                seed=options.seed,
                overwrite=options.overwrite,
                progress=progress,
            )
        print(_line(split, written, time.perf_counter() - begun))
    return ExitCode.DONE


def _parser(verb: str) -> PlainParser:
    parser = PlainParser(
        verb,
        "Write the images of a set, as they are and in random order, into tar files of the "
        "WebDataset layout. The same command again goes on with what is missing.",
    )
    parser.add_argument("layout", choices=["imagenet"])
    parser.add_argument("source", type=Path, metavar="FROM", help="the data set's folder")
    parser.add_argument("target", type=Path, metavar="TO", help="folder of the shards")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--samples-per-shard", type=int, metavar="N", help="the most in a shard")
    size.add_argument(
        "--shard-size",
        type=_bytes,
        default="500MB",
        metavar="SIZE",
        help="of a shard, nearly; default: 500MB",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="shards written at a time; default: 8, or the CPUs"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order; default: 0")
    parser.add_argument(
        "--split", nargs="+", choices=_SPLITS, default=list(_SPLITS), help="default: both"
    )
    parser.add_argument(
        "--val-fraction",
        type=float,
        metavar="F",
        help="of a set without a split, the share for validation, as data.val_fraction",
    )
    parser.add_argument(
        "--val-labels",
        type=Path,
        metavar="FILE",
        help="labels of val/*, as data.val_labels; default: looked for",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="delete what shard-data has written to TO before"
    )
    return parser


def _bytes(text: str) -> int:
    """A size such as 500MB or 1.5GiB in bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG])(i?)B", text, re.IGNORECASE)
    units = _BINARY_UNITS if match and match[3] else _UNITS
    size = round(float(match[1]) * units[match[2].upper()]) if match else 0
    if size < 1:
        raise ArgumentTypeError(f"{text} is no size; 500MB and 1GB are")
    return size


def _line(split: str, written: "Written", seconds: float) -> str:
    new = f"{written.new_shards} of them new"
    if written.new_shards:
        new += f", at {written.new_bytes / 1e6 / seconds:.0f} MB/s"
    return (
        f"{split:<6}{written.images} images in {written.shards} shards, "
        f"{_readable(written.bytes)}, {new}"
    )


def _readable(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 10**9 else f"{size / 1e6:.1f} MB"
