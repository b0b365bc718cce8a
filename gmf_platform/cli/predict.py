"""predict: write predictions for image files."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.pairs import IMAGE_SUFFIXES
from gmf_platform.cli.arguments import Arguments, VerbParser, parse_arguments
from gmf_platform.cli.config_check import checked
from gmf_platform.cli.trained import check_weights, load_trained
from gmf_platform.errors import ExitCode, UserError, counted

if TYPE_CHECKING:
    from gmf_platform.deploy.writers import JointWriter, PredictionWriter
    from gmf_platform.tasks import BaseTask

__all__ = ["find_images", "run"]

LEGEND = "classes.json"
"""What every prediction leaves in its folder (deploy/writers/base.py)."""

_NAMED = 5
"""Files that are no images, at most so many by name."""


def run(verb: str, argv: Sequence[str]) -> int:
    """Run the verb; see ``predict --help``."""
    parser = VerbParser(verb, "Write predictions for image files, and pictures of them.")
    parser.add_weights()
    parser.add_argument(
        "--images", nargs="+", required=True, metavar="PATH", help="files, folders or globs"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="to write to")
    parser.add_argument("--overwrite", action="store_true", help="predictions that DIR holds")
    arguments = parse_arguments(parser, argv)
    output: Path = arguments.options.output
    if output.is_file():
        raise UserError(f"--output {output}: is a file; name a folder")
    if (output / LEGEND).exists() and not arguments.options.overwrite:
        raise UserError(
            f"--output {output}: holds predictions already; name another folder, or replace them "
            "with --overwrite"
        )
    images = find_images(arguments.options.images)
    _check_images(images)
    sources = checked(arguments)
    checkpoint = check_weights(arguments, sources)
    with sources.placing():
        return _predict(arguments, images, checkpoint)


def _predict(arguments: Arguments, images: Mapping[Path, Path], checkpoint: Path | None) -> int:
    """Predict images into the output's folder, and say so."""
    from gmf_platform.callbacks import Bar, Progress, Throughput
    from gmf_platform.cli.device import prepare_device
    from gmf_platform.cli.experiment import Experiment
    from gmf_platform.cli.output import advising_on_memory, log_to

    log_to(None)
    experiment = Experiment(arguments)
    prepare_device(experiment.config.trainer.accelerator)
    if checkpoint is not None:
        experiment.take_classes(checkpoint)
    experiment.build(Path(), quiet=True)
    load_trained(experiment, checkpoint, arguments.options)
    trainer = experiment.trainer
    output: Path = arguments.options.output
    make_writer = _writer(experiment.task, checkpoint or experiment.init_from)
    writer: PredictionWriter | JointWriter = make_writer(
        output, images, experiment.task.class_names
    )
    _check_files(writer, images, overwrite=arguments.options.overwrite)
    shown = Bar if Progress.is_bar_wanted() else Progress
    trainer.callbacks += [writer, shown(Throughput())]  # type: ignore[attr-defined]
    loader = experiment.datamodule.predict_loader(
        list(images), rank=trainer.global_rank, world_size=trainer.world_size
    )
    with advising_on_memory(experiment):
        trainer.predict(experiment.task, loader, return_predictions=False)
    if trainer.is_global_zero:
        print(f"{counted(len(images), 'image', 'images')}: {writer.what} are in {output}")
    return ExitCode.DONE


def _writer(task: "BaseTask", weights: Path | None) -> Callable[..., Any]:
    """What writes a task's predictions; a checkpoint tells how COCO's results name its classes."""
    from gmf_platform.models.weights import read_facts

    return _writer_of(task, {} if weights is None or not weights.exists() else read_facts(weights))


def _writer_of(task: "BaseTask", facts: Mapping[str, Any]) -> Callable[..., Any]:
    from gmf_platform.deploy import writers
    from gmf_platform.tasks import ClassificationTask, DetectionTask, MultiTask, SegmentationTask

    match task:
        case MultiTask():
            known = facts.get("tasks", {})
            makers = {name: _writer_of(part, known.get(name, {})) for name, part in task.parts()}
            return partial(writers.JointWriter, makers)
        case ClassificationTask():
            return writers.ClassificationWriter
        case DetectionTask():
            same = facts.get("class_names") == task.class_names
            ids = facts.get("category_ids") if same else None
            return partial(writers.DetectionWriter, category_ids=ids)
        case SegmentationTask():
            return writers.SegmentationWriter
    raise UserError(f"model.class_path: nothing here writes what {type(task).__name__} predicts")


def _check_images(images: Iterable[Path]) -> None:
    """Refuse what is no image, or half of one, before the model is loaded and thousands predicted.

    Raises:
        UserError: naming such files.
    """
    from datamodules.images import DataError, check_image

    problems = []
    for path in images:
        try:
            check_image(path)
        except DataError as error:
            problems.append(str(error))
    if problems:
        more = len(problems) - _NAMED
        raise UserError("\n".join([*problems[:_NAMED], *([f"(and {more} more)"] * (more > 0))]))


def _check_files(
    writer: "PredictionWriter | JointWriter", images: Mapping[Path, Path], *, overwrite: bool
) -> None:
    """Refuse to write over an image that is predicted, and unasked over any other file."""
    sources = {source.resolve() for source in images}
    for path in filter(Path.exists, writer.files()):
        if path.resolve() in sources:
            raise UserError(
                f"--output {writer.output}: {path} is one of the images and would be overwritten "
                "by a prediction; name another folder"
            )
        if not overwrite:
            raise UserError(
                f"--output {writer.output}: {path} is there already; name another folder, or "
                "replace such files with --overwrite"
            )


def _glob(pattern: str) -> list[Path]:
    path = Path(pattern)
    return _images_among(Path(path.anchor).glob(str(path.relative_to(path.anchor))))


def _images_among(paths: Iterable[Path]) -> list[Path]:
    """Files that are images by their names, sorted; hidden ones, such as macOS leaves, are none."""
    return sorted(
        path
        for path in paths
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")
        and path.is_file()
    )


def find_images(words: Sequence[str]) -> dict[Path, Path]:
    """Image files that files, folders and globs name, each with its name in the output folder.

    A folder's images keep their place under it.

    Raises:
        UserError: a word that names nothing, or a folder without images.
    """
    found: dict[Path, Path] = {}
    for word in words:
        path = Path(word)
        if path.is_dir():
            new = {p: p.relative_to(path).with_suffix("") for p in _images_among(path.rglob("*"))}
        else:
            files = [path] if path.is_file() else _glob(word)
            new = {p: Path(p.stem) for p in files}
        if not new:
            raise UserError(f"--images {word}: no such file, or no images in it")
        found |= new
    taken: dict[Path, Path] = {}
    for source, name in found.items():
        if name in taken:
            raise UserError(f"--images: {taken[name]} and {source} would both be written as {name}")
        taken[name] = source
    return found
