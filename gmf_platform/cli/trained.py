"""What validate, test and predict share: a config with weights that have been trained."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gmf_platform.cli.arguments import Arguments
from gmf_platform.cli.precheck import check_checkpoint, check_init_from
from gmf_platform.cli.run_directory import RunDirectory
from gmf_platform.cli.sources import Sources
from gmf_platform.errors import UserError

if TYPE_CHECKING:
    from gmf_platform.cli.experiment import Experiment

__all__ = ["check_weights", "load_trained", "run_of"]


def check_weights(arguments: Arguments, sources: Sources) -> Path | None:
    """The checkpoint that a command line means, checked before the slow imports.

    Returns:
        ``--ckpt_path``, or the best checkpoint of ``--run``; None where ``init_from`` is meant.
    """
    options = arguments.options
    check_checkpoint(options.ckpt_path)
    if options.ckpt_path is not None:
        return Path(options.ckpt_path)
    named_here = any(key == "init_from" for key, _ in arguments.overrides)
    if options.run is not None and not named_here:
        return RunDirectory(options.run).best_or_last()
    if not options.allow_random or named_here:
        check_init_from(sources)
    return None


def load_trained(
    experiment: "Experiment", checkpoint: Path | None, options: argparse.Namespace
) -> None:
    """Read the weights into the built model.

    Raises:
        UserError: some of the model's tensors are not in the file, so the result would be noise;
            or its classes are not the data's.
    """
    path = checkpoint or experiment.init_from
    if path is None or not path.exists():
        if options.allow_random:
            return
        raise UserError(
            "the weights are not trained: name some with --ckpt_path, --run or --init_from, "
            "or go on knowingly with --allow-random"
        )
    if not options.allow_random:
        _check_classes(path, experiment.task.class_names)
    report = experiment.load(path, allow_partial=options.allow_partial or options.allow_random)
    if (report.missing or report.skipped) and not options.allow_random:
        raise UserError(
            f"{path} does not hold all of the model, so its results would be noise:\n{report}\n"
            "name a trained checkpoint with --ckpt_path or --run, or go on knowingly with "
            "--allow-random"
        )


def _check_classes(path: Path, class_names: list[str]) -> None:
    """Check that labels mean in the data what they meant in training.

    Raises:
        UserError: the same number of classes has other names, or another order.
    """
    from gmf_platform.models.weights import read_facts

    trained = read_facts(path).get("class_names", class_names)
    if len(trained) != len(class_names):
        raise UserError(
            f"{path} was trained on {len(trained)} classes, the data has {len(class_names)}: name "
            "those of training in their order (data.classes), or give the data it was trained on"
        )
    differ = [i for i, name in enumerate(trained) if name != class_names[i]]
    if differ:
        i = differ[0]
        raise UserError(
            f"{path} was trained on other classes than the data has: label {i} is {trained[i]!r} "
            f"there and {class_names[i]!r} here ({len(differ)} of {len(trained)} differ); scores "
            "would be wrong. Name the classes in the order of training (data.classes)"
        )


def run_of(arguments: Arguments, checkpoint: Path | None) -> RunDirectory | None:
    """The run that a checkpoint belongs to, if it lies in one."""
    if arguments.options.run is not None:
        return RunDirectory(arguments.options.run)
    if checkpoint is None:
        return None
    folder = RunDirectory(checkpoint.resolve().parent.parent)
    return folder if folder.config.is_file() else None
