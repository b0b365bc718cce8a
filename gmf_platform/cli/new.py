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
    tasks = {
        "seg": (_segmentation, "images with masks of classes"),
        "det": (_detection, "images with COCO annotations, of boxes or of masks too"),
        "cls": (_classification, "images in a folder for each class"),
    }
    what = "; ".join(f"{task}: {about}" for task, (_, about) in tasks.items())
    parser.add_argument("task", choices=list(tasks), help=what)
    task: str = parser.parse_args(argv[:1]).task
    write, _ = tasks[task]
    return write(f"{verb} {task}", argv[1:])


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


def _detection(verb: str, argv: Sequence[str]) -> int:
    parser = PlainParser(
        verb,
        "Look at COCO annotations, and print a config for them: "
        f"python -m gmf_platform {verb} --images DIR --annotations FILE > my.yaml",
    )
    for prefix, whose in (("", "images"), ("val-", "validation images; default: a share of all")):
        needed = not prefix
        parser.add_argument(
            f"--{prefix}images", type=Path, required=needed, metavar="DIR", help=f"of the {whose}"
        )
        parser.add_argument(
            f"--{prefix}annotations", type=Path, required=needed, metavar="FILE", help="likewise"
        )
    parser.add_argument("--name", default="my", help="of the config, for its comments")
    options = parser.parse_args(argv)

    from gmf_platform.cli.new_detection import look_at, notes, write_config

    if (options.val_images is None) != (options.val_annotations is None):
        raise UserError("--val-images and --val-annotations: one needs the other")
    parts = [look_at(options.images, options.annotations)]
    if options.val_images is not None:
        parts.append(look_at(options.val_images, options.val_annotations, train=parts[0]))
    config = write_config(parts, name=options.name)
    for line in notes(parts):
        print(f"note: {line}", file=sys.stderr)
    print(config, end="")
    return ExitCode.DONE


def _classification(verb: str, argv: Sequence[str]) -> int:
    parser = PlainParser(
        verb,
        "Look at images in a folder for each class, and print a config for them: "
        f"python -m gmf_platform {verb} --images DIR > my.yaml",
    )
    parser.add_argument(
        "--images",
        type=Path,
        required=True,
        metavar="DIR",
        help="holds a folder for each class, or train and val that do",
    )
    parser.add_argument("--name", default="my", help="of the config, for its comments")
    options = parser.parse_args(argv)

    from gmf_platform.cli.new_classification import look_at, notes, write_config

    survey = look_at(options.images)
    config = write_config(survey, name=options.name)
    for line in notes(survey):
        print(f"note: {line}", file=sys.stderr)
    print(config, end="")
    return ExitCode.DONE
