"""A model as a file that runs without this package: ONNX, or a program of torch.export."""

import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as config

from gmf_platform.deploy.agreement import difference
from gmf_platform.deploy.graphs import Graph
from gmf_platform.errors import UserError

__all__ = ["Exported", "Format", "check_installed", "exported", "traced"]

Format = Literal["onnx", "torch_export"]

Runner = Callable[[Tensor], dict[str, NDArray[Any]]]
"""Images uint8 (B, H, W, 3) to outputs by name."""

ABOUT = "gmf_platform"
"""Key in a file's metadata under which class names and sizes are, as json."""

_FILES: dict[Format, str] = {"onnx": "model.onnx", "torch_export": "model.pt2"}
_RUNS = 5


@dataclass(frozen=True)
class Exported:
    """A file that was written, and has been compared with the model.

    Attributes:
        path: of the file.
        megabytes: its size.
        seconds: for one image, the median of several runs on the CPU.
        torch_seconds: of the same in PyTorch, measured in turns with it.
        difference: the largest of a probability or score.
    """

    path: Path
    megabytes: float
    seconds: float
    torch_seconds: float
    difference: float


def check_installed(formats: Sequence[Format]) -> None:
    """Check that what a format needs is there.

    Raises:
        UserError: it is not.
    """
    needed = ("onnx", "onnxscript", "onnxruntime") if "onnx" in formats else ()
    absent = [name for name in needed if find_spec(name) is None]
    if absent:
        raise UserError(
            f"export: {' and '.join(absent)} not installed: pip install 'gmf_platform[export]', or "
            "export without ONNX: --format torch_export"
        )


def traced(graph: Graph) -> ExportedProgram:
    """The graph for images of any number, height and width from its least on.

    Raises:
        UserError: something in the model cannot be traced.
    """
    sides = {1: Dim("height", min=graph.least), 2: Dim("width", min=graph.least)}
    # Sides and number all differ, so that none is taken for another.
    example = torch.zeros(2, 200, 330, 3, dtype=torch.uint8)
    try:
        with torch.no_grad(), _quiet(), _any_size():
            program = torch.export.export(
                graph,
                (example,),
                dynamic_shapes={"images": {0: Dim("batch"), **sides}},
                # A tensor's size in terms of the image's is not always seen to be right in advance.
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except Exception as error:  # whatever torch.export does not know
        raise UserError(
            f"export: torch.export cannot trace this model: {_first_line(error)}"
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # of no use elsewhere, and a third of a file
    return program


def exported(
    program: ExportedProgram,
    kind: Format,
    folder: Path,
    *,
    graph: Graph,
    model: Callable[..., Any],
    about: dict[str, Any],
    images: Sequence[Tensor],
) -> Exported:
    """Write a file, run it on images and compare it with the model.

    Args:
        program: of the graph.
        kind: what to write.
        folder: where to.
        graph: what was traced.
        model: the task's, in evaluation mode on the CPU, which the file is compared with.
        about: metadata, plain types.
        images: uint8 (1, H, W, 3), of any sizes; the first is also run as a batch of three.

    Raises:
        UserError: the exporter fails, the file does not agree with the model, or nothing was
            found that could be compared.
    """
    path = folder / _FILES[kind]
    try:
        with _quiet():
            run = _WRITERS[kind](program, path, graph.outputs, about)
    except Exception as error:  # whatever the exporter does not know
        raise UserError(f"export: {kind}: {_first_line(error)}") from error
    batch = torch.cat([images[0], images[0].flip(2), images[0].flip(1)])
    score = about["min_score"]
    found = [(x, run(x)) for x in (*images, batch)]
    _refuse_nothing(graph, [outputs for _, outputs in found], score)
    gaps = [difference(model, outputs, x, task=graph.task, min_score=score) for x, outputs in found]
    seconds, torch_seconds = _timed(lambda: run(images[0]), lambda: _eager(graph, images[0]))
    return Exported(path, path.stat().st_size / 1e6, seconds, torch_seconds, max(gaps))


def _refuse_nothing(
    graph: Graph, found: Sequence[dict[str, NDArray[Any]]], min_score: float
) -> None:
    if graph.task == "detection" and all((x["scores"] < min_score).all() for x in found):
        best = max(float(x["scores"].max()) for x in found)
        raise UserError(
            f"export: nothing on the images scores {min_score} (the best is {best:.2f}), so there "
            "is nothing to compare: name others with --images, or lower --min-score"
        )


def _write_onnx(
    program: ExportedProgram, path: Path, outputs: Sequence[str], about: dict[str, Any]
) -> Runner:
    written = torch.onnx.export(
        program,
        input_names=["images"],
        output_names=list(outputs),
        dynamic_shapes={"images": dict(enumerate(("batch", "height", "width")))},  # their names
        dynamo=True,
        external_data=False,
        optimize=False,  # minutes for the largest models; onnxruntime does it when it loads a file
    )
    assert written is not None
    for node in written.model.graph.all_nodes():
        node.metadata_props.clear()  # where in our code it comes from
    written.model.metadata_props[ABOUT] = json.dumps(about)
    written.save(path, external_data=False)
    return _onnx_runner(path)


def _onnx_runner(path: Path) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # so that times can be compared
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images: Tensor) -> dict[str, NDArray[Any]]:
        arrays = session.run(None, {"images": images.numpy()})
        return dict(zip(names, arrays, strict=True))

    return run


def _write_program(
    program: ExportedProgram, path: Path, outputs: Sequence[str], about: dict[str, Any]
) -> Runner:
    torch.export.save(program, path, extra_files={f"{ABOUT}.json": json.dumps(about)})
    module = torch.export.load(path).module()

    def run(images: Tensor) -> dict[str, NDArray[Any]]:
        with torch.no_grad():
            tensors = module(images)
        return {name: x.numpy() for name, x in zip(outputs, tensors, strict=True)}

    return run


_WRITERS = {"onnx": _write_onnx, "torch_export": _write_program}


@torch.no_grad()
def _eager(graph: Graph, images: Tensor) -> Any:
    return graph(images)


def _timed(*calls: Callable[[], Any]) -> list[float]:
    """Median seconds of each call, in turns, so that a busy moment hits them alike."""
    rounds = []
    for _ in range(_RUNS + 1):
        seconds = []
        for call in calls:
            begun = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - begun)
        rounds.append(seconds)
    return [statistics.median(column) for column in zip(*rounds[1:], strict=True)]


def _any_size() -> AbstractContextManager[None]:
    """Take sizes of 1 for sizes like others, as torch.onnx does when it traces by itself.

    The coarsest map of a small image has a side of 1, which would else be ruled out.
    """
    context: AbstractContextManager[None] = config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    return context


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' own reports of progress, and their warnings to their developers."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.partition("\n")[0]
