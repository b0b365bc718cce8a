"""export: a trained model as ONNX or as a program of torch.export."""

import shutil
from collections.abc import Sequence
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

    from gmf_platform.deploy.trained import TrainedModel

__all__ = ["run"]

_IMAGES = 4
"""So many of the validation images are compared, where none are named."""


def run(verb: str, argv: Sequence[str]) -> int:
    """Run the verb; see ``export --help``."""
    options = _parser(verb).parse_args(argv)
    folder: Path = options.folder
    if folder.is_file():
        raise UserError(f"export: {folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not options.overwrite:
        raise UserError(f"export: {folder} is not empty; --overwrite replaces what is exported")
    sources = list(find_images(options.images)) if options.images else None

    from gmf_platform.deploy.card import model_card
    from gmf_platform.deploy.export import check_installed, exported, traced
    from gmf_platform.deploy.graphs import graph_of
    from gmf_platform.deploy.trained import load

    check_installed(options.format)
    model = load(options.checkpoint, device="cpu", config=options.config)
    graph = graph_of(model.task.model)  # type: ignore[arg-type]
    images = _images(model, sources)
    about = {
        "task": graph.task,
        "class_names": model.class_names,
        "resizing": model.datamodule.resizing(),
        "min_score": options.min_score,
    }
    program = traced(graph)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".export-") as name:
        made = Path(name)
        files = [
            exported(
                program,
                kind,
                made,
                graph=graph,
                model=model.task.model,  # type: ignore[arg-type]
                about=about,
                images=images,
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
        (made / "README.md").write_text(card, encoding="utf-8")
        if "onnx" in options.format:
            _copy_runner(made / "run.py")
        written = [path.replace(folder / path.name) for path in sorted(made.iterdir())]
    for file in files:
        print(
            f"{file.path.name:<11} {file.megabytes:.1f} MB, {1e3 * file.seconds:.0f} ms an image "
            f"({1e3 * file.torch_seconds:.0f} ms in PyTorch); agrees with PyTorch on {len(images)} "
            f"images to {file.difference:.1e}"
        )
    print(f"{folder}: {', '.join(path.name for path in written)}")
    return ExitCode.DONE


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
    parser.add_argument("--licence", metavar="TEXT", help="of the weights, for the model card")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="of the run, if CHECKPOINT has none"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what OUT holds")
    return parser


def _images(model: "TrainedModel", sources: Sequence[Path] | None) -> "list[Tensor]":
    """Images uint8 (1, H, W, 3) at the network's size, without padding.

    Raises:
        UserError: none are named, and the data is not at hand.
    """
    from gmf_platform.deploy.export import LEAST

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
        if min(height, width) >= LEAST
    ]
    if not images:
        raise UserError(f"export: all images have a side of less than {LEAST} pixels when resized")
    return images


def _copy_runner(path: Path) -> None:
    from gmf_platform.deploy import trained

    shutil.copyfile(Path(trained.__file__).with_name("run_exported.py"), path)
