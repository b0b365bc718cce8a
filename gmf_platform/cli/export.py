"""export: a trained model as ONNX or as a program of torch.export."""

import shutil
from argparse import Namespace
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from gmf_platform.cli.arguments import PlainParser
from gmf_platform.cli.predict import find_images
from gmf_platform.cli.run_directory import content_hash
from gmf_platform.errors import ExitCode, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from gmf_platform.deploy.export import Exported
    from gmf_platform.deploy.graphs import Graph
    from gmf_platform.deploy.trained import TrainedModel

__all__ = ["run"]

_IMAGES = 4
"""So many of the validation images are compared, where none are named."""

_WRITTEN = ("model.onnx", "model.pt2", "run.py", "README.md")


def run(verb: str, argv: Sequence[str]) -> int:
    """Run the verb; see ``export --help``."""
    options = _parser(verb).parse_args(argv)
    folder: Path = options.folder
    if folder.is_file():
        raise UserError(f"export: {folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not options.overwrite:
        raise UserError(f"export: {folder} is not empty; --overwrite replaces what is exported")
    sources = list(find_images(options.images)) if options.images else None

    from gmf_platform.deploy.export import check_installed
    from gmf_platform.deploy.trained import load

    check_installed(options.format)
    models = _chosen(load(options.checkpoint, device="cpu", config=options.config), options.task)
    # What cannot be exported is refused before the slow part.
    graphs = {name: _graph(name, models) for name in models}
    images = {name: _images(model, sources, graphs[name].least) for name, model in models.items()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as made:
        files = Path(made, "files")  # its own folder: a temporary one is closed to others
        said = [
            _export(model, graphs[name], images[name], files / name, options)
            for name, model in models.items()
        ]
        for name in models:
            for old in _WRITTEN:  # of an export before, which may have had other formats
                (folder / name / old).unlink(missing_ok=True)
        shutil.copytree(files, folder, dirs_exist_ok=True)
    for name, lines in zip(models, said, strict=True):
        print(f"{folder / name}:", *lines, sep="\n  ")
    return ExitCode.DONE


def _chosen(model: "TrainedModel", names: Sequence[str] | None) -> "dict[str, TrainedModel]":
    """What to export, by the folder it goes to inside OUT.

    Raises:
        UserError: there is no such task.
    """
    parts = model.parts()
    if not parts and not names:
        return {"": model}
    for name in names or ():
        if name not in parts:
            there = f"there are {', '.join(parts)}" if parts else "the model is of one task alone"
            raise UserError(f"export: --task {name}: there is no such task; {there}")
    return {name: parts[name] for name in names or parts}


def _graph(name: str, models: "Mapping[str, TrainedModel]") -> "Graph":
    """The graph of one of the models.

    Raises:
        UserError: it cannot be exported; how the others can is said.
    """
    from gmf_platform.deploy.graphs import graph_of

    try:
        return graph_of(models[name].task.model)
    except UserError as error:
        others = " ".join(other for other in models if other != name)
        if not others:
            raise
        raise UserError(
            f"{error}. That is the task {name}: --task {others} leaves it out"
        ) from None


def _export(
    model: "TrainedModel",
    graph: "Graph",
    images: "Sequence[Tensor]",
    folder: Path,
    options: Namespace,
) -> list[str]:
    """Write all files of a single task to a folder; returns what there is to say of them."""
    from gmf_platform import deploy
    from gmf_platform.deploy.card import model_card
    from gmf_platform.deploy.export import exported, traced
    from gmf_platform.evaluation.drawing import palette

    about = {
        "task": graph.task,
        "class_names": model.class_names,
        "colours": palette(len(model.class_names))[: len(model.class_names)].tolist(),
        "resizing": model.datamodule.resizing(),
        "min_score": options.min_score,
        "least": graph.least,
    }
    program = traced(graph)
    folder.mkdir(parents=True, exist_ok=True)
    files = [
        exported(
            program, kind, folder, graph=graph, model=model.task.model, about=about, images=images
        )
        for kind in options.format
    ]
    card = model_card(
        model,
        files,
        about=about,
        source=f"{model.path.name} ({content_hash(model.path)})",
        licence=options.licence,
        size=(images[0].shape[1], images[0].shape[2]),
        images=len(images),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    others = ["README.md, the model card"]
    if "onnx" in options.format:
        shutil.copyfile(Path(deploy.__file__).with_name("run_exported.py"), folder / "run.py")
        others.append("run.py, which runs it")
    return [*(_told(file, len(images)) for file in files), *others]


def _told(file: "Exported", images: int) -> str:
    return (
        f"{file.path.name}: {file.megabytes:.1f} MB, {1e3 * file.seconds:.0f} ms an image "
        f"({1e3 * file.torch_seconds:.0f} ms in PyTorch); agrees with PyTorch on {images} images "
        f"to {file.difference:.1e}"
    )


def _parser(verb: str) -> PlainParser:
    parser = PlainParser(
        verb,
        "A trained model as a file that runs without this package, compared with PyTorch on real "
        "images before it is kept; with a run.py and a model card.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="or a run's folder")
    parser.add_argument("folder", type=Path, metavar="OUT", help="folder to write to")
    parser.add_argument(
        "--format",
        nargs="+",
        choices=("onnx", "torch_export"),
        default=["onnx"],
        help="model.onnx, model.pt2 (default: onnx)",
    )
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="PATH",
        help=f"to compare on: files, folders or globs; default: {_IMAGES} of the validation split",
    )
    parser.add_argument(
        "--min-score",
        type=float,
        default=0.3,
        help="of detection: objects that are compared, and that run.py shows (default: 0.3)",
    )
    parser.add_argument(
        "--task",
        nargs="+",
        metavar="NAME",
        help="of a joint model: the tasks to export, each to a folder of its own (default: all)",
    )
    parser.add_argument("--licence", metavar="TEXT", help="of the weights, for the model card")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="of the run, if CHECKPOINT has none"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what OUT holds")
    return parser


def _images(model: "TrainedModel", sources: Sequence[Path] | None, least: int) -> "list[Tensor]":
    """Images uint8 (1, H, W, 3) at the network's size, without padding.

    Raises:
        UserError: none are named, and the data is not at hand.
    """
    data = model.datamodule
    data.eval_batch_size = 1
    if sources is not None:
        batches: Any = data.predict_loader(sources)
    else:
        try:
            data.setup("validate")
            batches = data.eval_loader("validation")
        except UserError as error:
            raise UserError(
                f"export: needs real images to compare on: name some with --images, since the "
                f"validation split is not at hand ({error})"
            ) from None
    images = [
        batch["images"][:, :, :height, :width].permute(0, 2, 3, 1).contiguous()
        for batch in islice(batches, None if sources else _IMAGES)
        for height, width in batch["sizes"].tolist()
        if min(height, width) >= least
    ]
    if not images:
        raise UserError(f"export: all images have a side of less than {least} pixels when resized")
    return images
