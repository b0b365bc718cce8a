"""Weights of any origin into a model, and a report of what went where."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gmf_platform.errors import UserError
from gmf_platform.models.backbones.groupmixformer import VARIANTS
from gmf_platform.models.heads.classification import ClassificationHead
from gmf_platform.models.weight_files import read_content, read_facts
from gmf_platform.models.weight_names import official_name, task_statistics, unknown_parts

__all__ = [
    "LoadReport",
    "SkippedTensor",
    "check_resumable",
    "find_variant",
    "load_part",
    "load_weights",
    "read_facts",
    "read_state_dict",
]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class SkippedTensor:
    """A tensor left out because its size in the file is not its size in the model."""

    name: str
    in_file: Shape
    in_model: Shape

    def __str__(self) -> str:
        return f"{self.name} (file {_size(self.in_file)}, model {_size(self.in_model)})"


@dataclass(frozen=True)
class LoadReport:
    """What became of each tensor; ``print`` shows it as a table.

    Attributes:
        path: The file.
        averaged: Whether it is the moving average of a run's weights that was taken.
        loaded: Names in the model that took the file's values.
        skipped: Names in the model whose size differs.
        missing: Names in the model that the file lacks.
        unused: Names in the file that the model lacks.
    """

    path: Path
    averaged: bool
    loaded: tuple[str, ...]
    skipped: tuple[SkippedTensor, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        rows = {
            "loaded": _by_module(self.loaded),
            "other size": ", ".join(map(str, self.skipped)),
            "not in the file": _by_module(self.missing),
            "not in the model": _by_module(self.unused),
        }
        table = [f"  {title:<16}  {text}" for title, text in rows.items() if text]
        title = f"{self.path}, the moving average:" if self.averaged else f"{self.path}:"
        return "\n".join([title, *table])


def load_weights(model: nn.Module, path: str | Path, *, allow_partial: bool = False) -> LoadReport:
    """Load a file into a model that has a submodule ``backbone``, and heads.

    Names may be the model's own (our checkpoints), those of a backbone alone, or those of
    GroupMixFormer's authors, whose ``norm4`` and ``head`` go to the classification head if there
    is one. Tensors of another size, as of a head for other classes, are left out and reported.

    Args:
        model: Filled in place.
        path: See `read_state_dict`.
        allow_partial: Accept a file that leaves part of the backbone unfilled.

    Returns:
        What was loaded and what was not.

    Raises:
        UserError: If the file cannot be read, holds another GroupMixFormer, or does not fill the
            backbone.
    """
    found, averaged = _read(Path(path))
    own: dict[str, Tensor] = model.state_dict()
    found |= {name: found[shared] for name, shared in task_statistics(found, own).items()}
    _refuse_other_layout(Path(path), found, own, allow_partial)

    names = _match_names(found, own, model)
    fits = {name: found[name].shape == own[target].shape for name, target in names.items()}
    report = LoadReport(
        path=Path(path),
        averaged=averaged,
        loaded=tuple(target for name, target in names.items() if fits[name]),
        skipped=tuple(
            SkippedTensor(target, tuple(found[name].shape), tuple(own[target].shape))
            for name, target in names.items()
            if not fits[name]
        ),
        missing=tuple(name for name in own if name not in names.values()),
        unused=tuple(name for name in found if name not in names),
    )
    if not allow_partial:
        _refuse_earlier_network(Path(path), report.unused)
        _refuse_partial_backbone(report)
    model.load_state_dict(
        {target: found[name] for name, target in names.items() if fits[name]}, strict=False
    )
    return report


def load_part(
    model: nn.Module, part: str, path: str | Path, *, allow_partial: bool = False
) -> LoadReport:
    """Load a part of a model of several tasks: the backbone, or the head of a task.

    Args:
        model: Filled in place.
        part: ``backbone``, or the name of a task; its head has the names of a single task's.
        path: See `read_state_dict`.
        allow_partial: See `load_weights`.

    Raises:
        UserError: If there is no such part, or nothing in the file is for it; see `load_weights`.
    """
    parts = [name for name, child in model.named_children() if list(child.parameters())]
    if part not in parts:
        raise UserError(f"init_from.{part}: the model has no such part: {', '.join(parts)}")
    target = model.get_submodule(part)
    if part == "backbone":
        target = nn.ModuleDict({part: target})
    report = load_weights(target, path, allow_partial=allow_partial)
    if not report.loaded:
        raise UserError(f"init_from.{part}: {path} has nothing for it\n{report}")
    return report


def check_resumable(model: nn.Module, path: str | Path) -> None:
    """Check that a run of ``model`` can go on from a file, before Lightning is given it.

    Raises:
        UserError: the file is damaged, holds weights alone, or is of another model.
    """
    path = Path(path)
    content = read_content(path)
    if not isinstance(content, Mapping) or "loops" not in content:
        raise UserError(
            f"--ckpt_path {path}: the file holds weights alone, not the state of a run: begin from "
            f"it with --init_from {path}"
        )
    found, own = read_state_dict(path), model.state_dict()
    _refuse_other_layout(path, found, own, allow_partial=False)
    differ = [
        name
        for name in sorted({*found, *own})
        if name not in found or name not in own or found[name].shape != own[name].shape
    ]
    if differ:
        raise UserError(
            f"--ckpt_path {path}: the file is of another model; {len(differ)} tensors differ, the "
            f"first is {differ[0]}. A run goes on with its own config; --init_from {path} takes "
            "the weights that fit"
        )


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a file, on the CPU, without running code from it.

    Takes ``.safetensors``, a plain state dict, GroupMixFormer's ``{"model": ...}`` with whatever
    settings its training left beside it, and a checkpoint of ours (``{"state_dict":
    {"model.<name>": ...}}``), also one in shards (`read_folder`), whose moving average, if it has
    one, is preferred to the weights that its run goes on from. Names become the authors' published
    ones: birder's and earlier files' are translated, and what wrappers such as ``torch.compile`` put
    into them goes.

    Args:
        path: The file.

    Returns:
        Tensors by name. They may be mapped from the file: copy before changing them.

    Raises:
        UserError: If the file is absent, damaged, without tensors, or asks to run code.
    """
    return _read(Path(path))[0]


def _read(path: Path) -> tuple[dict[str, Tensor], bool]:
    """The tensors of a file, and whether they are a moving average."""
    if not path.exists():
        raise UserError(f"Weights {path}: the path does not exist. Give that of a weights file.")
    content = read_content(path)
    tensors = {
        official_name(name): value
        for name, value in _state_dict_in(content).items()
        if isinstance(value, Tensor)
    }
    if not tensors:
        keys = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content)
        raise UserError(
            f"Weights {path}: no tensors found by name (it holds: {keys}). Give a state dict, "
            "alone or under the key 'model' or 'state_dict'."
        )
    return tensors, _average_in(content) is not None


def find_variant(state_dict: Mapping[str, Tensor]) -> str | None:
    """Tell which GroupMixFormer a state dict holds, by the sizes of its tensors.

    Args:
        state_dict: Of the backbone alone, or of a model with a submodule ``backbone``.

    Returns:
        The variant's name; None for a network that is none of the variants.
    """
    layout = _find_layout(state_dict)
    return layout.variant if layout else None


@dataclass(frozen=True)
class _Layout:
    """What the sizes of a GroupMixFormer's tensors show of it, per stage."""

    dims: Shape
    depths: Shape
    mlp_hidden: Shape

    @property
    def variant(self) -> str | None:
        """The name of the variant that looks so."""
        for name, known in VARIANTS.items():
            ratios = zip(known.embedding_dims, known.mlp_ratios, strict=True)
            hidden = tuple(int(dim * ratio) for dim, ratio in ratios)
            if self == _Layout(known.embedding_dims, known.depths, hidden):
                return name
        return None

    def __str__(self) -> str:
        numbers = (f"{title} {'-'.join(map(str, values))}" for title, values in vars(self).items())
        return f"GroupMixFormer {self.variant or 'of its own'} ({', '.join(numbers)})"


def _find_layout(state_dict: Mapping[str, Tensor]) -> _Layout | None:
    """The layout of the GroupMixFormer in a state dict; None if there is none."""
    pattern = re.compile(r"(?:backbone\.)?groupmixformer_backbone\.(\d+)\..*\.mlp\.fc1\.weight")
    blocks = [(m[1], t.shape) for name, t in state_dict.items() if (m := pattern.fullmatch(name))]
    if not blocks:
        return None
    depths, shapes = Counter(stage for stage, _ in blocks), dict(blocks)
    stages = sorted(shapes)
    return _Layout(
        dims=tuple(shapes[stage][1] for stage in stages),
        depths=tuple(depths[stage] for stage in stages),
        mlp_hidden=tuple(shapes[stage][0] for stage in stages),
    )


def _refuse_other_layout(
    path: Path, found: Mapping[str, Tensor], own: Mapping[str, Tensor], allow_partial: bool
) -> None:
    theirs, ours = _find_layout(found), _find_layout(own)
    if theirs is None or ours is None or theirs == ours:
        return
    if allow_partial and theirs.variant is None:  # ours, perhaps, with blocks left out
        return
    remedy = (
        f": --model.backbone.variant {theirs.variant}"
        if theirs.variant
        else ". Give the backbone the file's embedding_dims, depths and mlp_ratios."
    )
    raise UserError(f"Weights {path}: the file holds {theirs}, the model is {ours}{remedy}")


def _match_names(
    found: Iterable[str], own: Mapping[str, Tensor], model: nn.Module
) -> dict[str, str]:
    """Name in the file -> name in the model, for those that have one."""
    heads = [name for name, part in model.named_modules() if isinstance(part, ClassificationHead)]
    prefixes = ["", "backbone.", *(f"{name}." for name in heads)]
    return {
        name: next(prefix + name for prefix in prefixes if prefix + name in own)
        for name in found
        if any(prefix + name in own for prefix in prefixes)
    }


def _refuse_earlier_network(path: Path, found: Iterable[str]) -> None:
    unknown = unknown_parts(found)
    if unknown:
        raise UserError(
            f"Weights {path}: the file is of an earlier network of the authors', whose local branch "
            f"has a part that the published one lacks ({unknown[0]} and {len(unknown) - 1} more). "
            "Its results would not be what it was trained for; --allow-partial loads the rest."
        )


def _refuse_partial_backbone(report: LoadReport) -> None:
    unfilled = [*report.missing, *(tensor.name for tensor in report.skipped)]
    gaps = [
        name
        for name in unfilled
        # A count that nothing is computed from; old files lack it.
        if name.startswith("backbone.") and not name.endswith("num_batches_tracked")
    ]
    if gaps:
        some = ", ".join(gaps[:3]) + (", ..." if len(gaps) > 3 else "")
        raise UserError(
            f"Weights {report.path}: {len(gaps)} tensors of the backbone are not in the file or "
            f"have another size there ({some}). Give a file of this backbone, or --allow-partial "
            f"if that is meant.\n{report}"
        )


def _state_dict_in(content: Any) -> Mapping[str, Any]:
    """The state dict inside what a file holds; empty if there is none."""
    match content:
        case {"state_dict": dict(inner)}:
            inner = _average_in(content) or inner
            ours = {k.removeprefix("model."): v for k, v in inner.items() if k.startswith("model.")}
            return ours or inner
        case {"model": dict(inner)} | dict(inner):
            return inner
        case _:
            return {}


def _average_in(content: Any) -> dict[str, Tensor] | None:
    """The moving average in a checkpoint of ours (gmf_platform/callbacks/average.py)."""
    match content:
        case {"gmf_platform": _, "average": {"state_dict": dict(average)}}:
            return average
        case _:
            return None


def _by_module(names: Iterable[str]) -> str:
    """Names in short: ``backbone (1142), head (2)``."""
    counts = Counter(name.partition(".")[0] for name in names)
    return ", ".join(f"{module} ({count})" for module, count in counts.items())


def _size(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "scalar"
