"""new: look at data and write a config for it."""

import sys
from collections.abc import Sequence
from pathlib import Path

from gmf_platform.cli.arguments import PlainParser
from gmf_platform.errors import ExitCode, UserError

__all__ = ["run"]


def run(verb: str, argv: Sequence[str]) -> int:
    """Run the verb; see ``new --help`` and ``new seg --help``."""
    parser = PlainParser(verb, "Look at your data, and print a config that fits it.")
    parser.add_argument("task", choices=["seg"], help="seg: images with masks of classes")
    parser.parse_args(argv[:1])
    return _segmentation(f"{verb} seg", argv[1:])


def _segmentation(verb: str, argv: Sequence[str]) -> int:
    parser = PlainParser(
        verb,
        "Look at images and masks, and print a config for them: "
        f"python -m gmf_platform {verb} --images DIR --masks DIR > my.yaml",
    )
    for option, what in (("--images", "folder, or a quoted pattern"), ("--masks", "likewise")):
        parser.add_argument(option, type=Path, required=True, metavar="DIR", help=what)
    parser.add_argument(
        "--mask-suffix", metavar="TEXT", help="of mask names: _mask in a_mask.png; default: found"
    )
    parser.add_argument("--classes", type=Path, metavar="FILE", help="class names, one a line")
    parser.add_argument("--name", default="my", help="of the config, for its comments")
    options = parser.parse_args(argv)

    from datamodules.labels import read_class_names
    from datamodules.layouts import files_at
    from datamodules.survey import survey_pairs
    from gmf_platform.cli.new_segmentation import decide, write_config

    for option in ("images", "masks"):
        if not files_at(getattr(options, option)):
            raise UserError(
                f"--{option} {getattr(options, option)}: no such folder, or no file in it"
            )
    names = None if options.classes is None else read_class_names(options.classes)
    survey = survey_pairs(options.images, options.masks, mask_suffix=options.mask_suffix)
    meaning = decide(survey, names)
    config = write_config(survey, meaning, options.images, options.masks, name=options.name)
    for line in meaning.evidence:
        print(f"note: {line}", file=sys.stderr)
    print(config, end="")
    return ExitCode.DONE
