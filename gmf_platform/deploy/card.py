"""The model card that stands beside an exported file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gmf_platform.deploy.export import Exported
from gmf_platform.deploy.trained import TrainedModel

__all__ = ["model_card"]

_NAMED = 20
"""Classes that the card names; a file's metadata names all."""

_OUTPUTS = {
    "classification": "`probabilities`: float32 (batch, classes)",
    "segmentation": "`labels`: uint8 (batch, height, width), the class of each pixel of the input; "
    "`probabilities`: float32 of the same shape, how likely it is",
    "detection": "`boxes`: float32 (batch, objects, 4), left, top, right, bottom in pixels of the "
    "input; `scores` and `labels`: (batch, objects); `count`: (batch,). Objects come by falling "
    "score, those behind the count are zero",
}

_CARD = """# {title}

| | |
|---|---|
{facts}

## Input and output

Input `images`: uint8 RGB (batch, height, width, 3), any number of images of one size from {least} x {least}
pixels; normalisation is inside. Output: {outputs}.

The model was evaluated on images {resizing}.{without}

## Files

Each was run on {count} real images (and a batch of three) and compared with PyTorch; times are for
one image of {size} on the CPU of the machine that exported it.

| file | MB | ms | ms in PyTorch | largest difference |
|---|---|---|---|---|
{files}
{usage}"""

_USAGE = """
## Use

`run.py` needs numpy, pillow and onnxruntime alone, and resizes images as the evaluation did:

    pip install numpy pillow onnxruntime
    python run.py photo.jpg --output out
"""


def model_card(
    model: TrainedModel,
    files: Sequence[Exported],
    *,
    about: Mapping[str, Any],
    source: str,
    licence: str | None,
    size: tuple[int, int],
    images: int,
) -> str:
    """Markdown: what the model is, what it was trained on, how good it is, and how to use it.

    Args:
        model: that was exported.
        files: that were written.
        about: the files' metadata.
        source: the checkpoint, in words.
        licence: of the weights; None: nobody said.
        size: height and width of the first image that files were compared on.
        images: how many there were.
    """
    names = list(about["class_names"])
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    data = model.config["data"]
    facts = {
        "Task": about["task"],
        "Model": f"{_variant(model)}, {_parameters(model) / 1e6:.2f} M parameters",
        "Data": f"{data['class_path']}, {Path(data['init_args'].get('root', '')).name}",
        "Classes": f"{len(names)}: {', '.join(names[:_NAMED])}{more}",
        "Score": _score(model.facts),
        "Licence": licence or "not stated: ask whoever trained it; the data's terms may apply too",
        "Made from": f"{source}, with torch {torch.__version__}",
    }
    rows = [
        f"| {f.path.name} | {f.megabytes:.1f} | {1e3 * f.seconds:.0f} | "
        f"{1e3 * f.torch_seconds:.0f} | {f.difference:.1e} |"
        for f in files
    ]
    has_onnx = any(f.path.suffix == ".onnx" for f in files)
    return _CARD.format(
        title=f"{about['task'].capitalize()}, {len(names)} classes",
        facts="\n".join(f"| {key} | {value} |" for key, value in facts.items()),
        outputs=_OUTPUTS[about["task"]],
        least=about["least"],
        resizing=_resizing(about["resizing"]),
        without=_without(model),
        count=images,
        size=f"{size[1]} x {size[0]}",
        files="\n".join(rows),
        usage=_USAGE if has_onnx else "",
    )


def _variant(model: TrainedModel) -> str:
    backbone = model.config["model"]["init_args"]["backbone"]
    name = backbone["class_path"].rpartition(".")[2]
    variant = (backbone.get("init_args") or {}).get("variant")
    return f"{name} {variant}" if variant else name


def _parameters(model: TrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.task.parameters())


def _score(facts: Mapping[str, Any]) -> str:
    scores = facts.get("scores")
    if not scores:
        return "not known: the file was not saved after a validation"
    shown = ", ".join(f"{name.removeprefix('val/')} {x:.4f}" for name, x in scores.items())
    return f"{shown} (validation, step {facts['global_step']})"


def _resizing(sides: Mapping[str, Any]) -> str:
    match sides:
        case {"centre": side, "short": short, "interpolation": kernel}:
            return (
                f"resized to a short side of {short} ({kernel}), the centre {side} x {side} of it"
            )
        case {"short": short, "long": long}:
            return f"resized to fit into {long} x {short} (bilinear, not antialiased)"
        case _:
            return "as they are"


def _without(model: TrainedModel) -> str:
    """What of the evaluation is not in the graph."""
    inference = model.config["model"]["init_args"].get("inference") or {}
    name = str(inference.get("class_path", "")).rpartition(".")[2]
    if name in ("", "WholeImage", "DetectionInference"):
        return ""
    return f" Its evaluation applied the network by {name}; the file applies it once, to the whole."
