"""A trained model by its file: three lines of Python from an image to a result."""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import torch
import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser
from PIL import Image, ImageOps

from datamodules.base import BaseDataModule
from datamodules.images import Image8, ImageSource
from datamodules.multitask import MultiTask
from gmf_platform.deploy.results import Result, as_results, classes_of
from gmf_platform.errors import UserError
from gmf_platform.evaluation.class_titles import titled
from gmf_platform.models.precision import default_precision
from gmf_platform.models.weight_folders import is_folder_of_shards
from gmf_platform.models.weights import load_weights, read_facts

__all__ = ["ImageInput", "TrainedModel", "load", "take_classes"]

ImageInput = str | Path | Image.Image | Image8
"""A file, a Pillow image, or uint8 RGB (H, W, 3)."""

_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}

PartT = TypeVar("PartT")


class TrainedModel:
    """A model with all that it needs to predict.

    Args:
        task: with trained weights.
        datamodule: brings images to the size that the model was evaluated at.
        path: the file that they come from.
        config: of the run, resolved.
        facts: what the model's file says beside its tensors, see `read_facts`.
        device: to predict on.

    Attributes:
        class_names: in label order, as people read them.
        device: that it predicts on.
    """

    def __init__(
        self,
        task: LightningModule,
        datamodule: BaseDataModule,
        *,
        path: Path,
        config: Mapping[str, Any],
        facts: Mapping[str, Any],
        device: torch.device,
    ) -> None:
        self.task: Any = task.to(device).eval().requires_grad_(False)
        self.datamodule, self.device = datamodule, device
        datamodule.num_workers = 0  # an image does not pay for processes
        self.path, self.config, self.facts = path, config, facts
        self.class_names = titled(facts["class_names"])
        precision = (config.get("trainer") or {}).get("precision")
        self._dtype = _AUTOCAST.get(str(precision or default_precision(device.type)))

    @overload
    def predict(self, images: ImageInput) -> Result: ...  # type: ignore[overload-overlap]  # a str is a sequence of str

    @overload
    def predict(self, images: Sequence[ImageInput]) -> list[Result]: ...

    def predict(self, images: ImageInput | Sequence[ImageInput]) -> Result | list[Result]:
        """Predict as the verb ``predict`` does, at the sizes of the run's evaluation.

        Args:
            images: one, or a list. Of a list, images of one size go through the network together,
                up to ``model.datamodule.eval_batch_size`` at a time.

        Returns:
            The result of the image; a list for a list.

        Raises:
            UserError: a file cannot be read, or an array is not uint8 RGB.
        """
        if isinstance(images, str | Path | Image.Image | np.ndarray):
            return self._predicted([_as_source(images)])[0]
        return self._predicted([_as_source(image) for image in images])

    def parts(self) -> dict[str, "TrainedModel"]:
        """The single tasks of a joint model by name; of one task alone: none.

        Each predicts as if it were alone, on images of its own size; the network is the joint one.
        """
        if not isinstance(self.datamodule, MultiTask):
            return {}
        return {name: self._part(name, data) for name, data in self.datamodule.tasks.items()}

    def _part(self, name: str, data: BaseDataModule) -> "TrainedModel":
        model, all_data = (self.config[key]["init_args"] for key in ("model", "data"))
        task = model["tasks"][name]
        settings = task.get("init_args", {}) | {"backbone": model["backbone"]}
        config = {
            "model": task | {"init_args": settings},
            "data": all_data["tasks"][name],
            "trainer": self.config.get("trainer"),
        }
        begin = f"val/{name}/"
        scores = {
            f"val/{key.removeprefix(begin)}": score
            for key, score in self.facts.get("scores", {}).items()
            if key.startswith(begin)
        }
        own = {"class_names": classes_of(name, self.class_names), "scores": scores}
        return TrainedModel(
            self.task.task(name),
            data,
            path=self.path,
            config=config,
            facts={**self.facts, **own},
            device=self.device,
        )

    def _predicted(self, sources: Sequence[ImageSource]) -> list[Result]:
        if not sources:
            return []
        groups = self.datamodule.predict_groups(sources)
        results: dict[int, Result] = {}
        for group, batch in zip(groups, self.datamodule.predict_loader(sources), strict=True):
            predictions = self._predictions(batch)
            found = as_results(predictions, [sources[i] for i in group], self.class_names)
            results |= dict(zip(group, found, strict=True))
        return [results[i] for i in range(len(sources))]

    @torch.no_grad()
    def _predictions(self, batch: Mapping[str, Any]) -> Any:
        on_device = move_data_to_device(batch, self.device)
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype is not None):
            return self.task.predict_step(on_device, 0)


def load(
    path: str | Path,
    *,
    device: str | torch.device | None = None,
    config: str | Path | None = None,
) -> TrainedModel:
    """Load a trained model.

    Nothing in the file is run; classes are built that its config names by path.

    Args:
        path: a checkpoint, the folder of a run (its best checkpoint), or a file of ``convert``.
        device: to predict on, as torch names it; None: the GPU if there is one.
        config: of the run; None: that in the file, or, in files of earlier releases, beside it.

    Raises:
        UserError: the file is missing or damaged, does not say what model it is of, or does not
            hold all of it; or there is no such device.
    """
    chosen = _device(device)
    checkpoint = _checkpoint(Path(path))
    facts = read_facts(checkpoint)
    settings = _config(checkpoint, facts, None if config is None else Path(config))
    names = facts.get("class_names")
    take_classes(settings["data"], facts)
    data: BaseDataModule = _built(LightningDataModule, settings["data"], checkpoint)
    facts = {**facts, "class_names": names or list(data.class_names)}
    # One image does not pay for a compilation.
    changes = {"class_names": facts["class_names"], "compile": False}
    settings["model"]["init_args"] = settings["model"].get("init_args", {}) | changes
    task = _built(LightningModule, settings["model"], checkpoint)
    _fill(task, checkpoint)
    return TrainedModel(task, data, path=checkpoint, config=settings, facts=facts, device=chosen)


def take_classes(data: Any, facts: Mapping[str, Any]) -> None:
    """Name the classes in a config of data as in training: the data may not be at hand.

    Args:
        data: ``class_path`` and ``init_args``; changed in place.
        facts: of the checkpoint, see `read_facts`.
    """
    settings, names = data.get("init_args") or {}, facts.get("class_names")
    if names and "classes" in settings:
        settings["classes"] = names
    for task, part in (settings.get("tasks") or {}).items():
        take_classes(part, facts.get("tasks", {}).get(task, {}))


def _device(named: str | torch.device | None) -> torch.device:
    """The device that is meant.

    Raises:
        UserError: it is not there.
    """
    try:
        chosen = torch.device(named or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without
        raise UserError(f"device {named}: {str(error).splitlines()[0]}") from None
    return chosen


def _checkpoint(path: Path) -> Path:
    """The file that a path means."""
    if path.is_file() or is_folder_of_shards(path):
        return path
    if not path.is_dir():
        raise UserError(f"{path}: there is no such file or folder")
    for name in ("best.ckpt", "last.ckpt"):
        found = path / "checkpoints" / name
        if found.exists():
            return found
    raise UserError(
        f"{path}: has no checkpoint (checkpoints/best.ckpt or last.ckpt), so it is no run"
    )


def _config(checkpoint: Path, facts: Mapping[str, Any], given: Path | None) -> dict[str, Any]:
    """The resolved config of a model.

    Raises:
        UserError: there is none, or it lacks a part.
    """
    beside = checkpoint.resolve().parent.parent / "config.yaml"
    if given is not None:
        text = given.read_text(encoding="utf-8")
    elif "config" in facts:
        text = facts["config"]
    elif beside.is_file():
        text = beside.read_text(encoding="utf-8")
    else:
        raise UserError(
            f"{checkpoint}: holds weights, but does not say of what model. Give the run's "
            "config.yaml as config, or the checkpoint of a run"
        )
    settings = yaml.safe_load(text)
    if not isinstance(settings, dict) or not settings.keys() >= {"model", "data"}:
        raise UserError(f"{given or checkpoint}: the config has no model or no data")
    return settings


def _built(kind: type[PartT], settings: Mapping[str, Any], checkpoint: Path) -> Any:
    """A part of the config: a class by its path, and its arguments.

    Raises:
        UserError: the class is not installed here, or does not take its arguments.
    """
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(kind, "part", subclass_mode=True)  # type: ignore[arg-type]
    try:
        parsed = parser.parse_object({"part": deepcopy(dict(settings))})  # it changes them
    except ArgumentError as error:
        raise UserError(
            f"{checkpoint}: {settings.get('class_path')} cannot be built from the config it was "
            f"trained with: {_reason(str(error))}"
        ) from None
    return parser.instantiate_classes(Namespace(part=parsed.part)).part


def _reason(message: str) -> str:
    """What a parser's page of nested types comes to: key, and the innermost line on it."""
    page = re.split(r"\n *(?:- Expected a <class 'NoneType'>|Given value)", message)[0]
    key = ".".join(re.findall(r'Parser key "([\w.]+)"', page)[1:])
    said = page.strip().splitlines()[-1].strip(" -")
    return f"{key}: {said}" if key else said


def _fill(task: LightningModule, checkpoint: Path) -> None:
    """Read the weights; all of them, or the results would be noise."""
    report = load_weights(task.model, checkpoint)  # type: ignore[arg-type]
    if report.missing or report.skipped:
        raise UserError(f"{checkpoint} does not hold all of the model:\n{report}")


def _as_source(image: ImageInput) -> ImageSource:
    """A path or uint8 RGB (H, W, 3).

    Raises:
        UserError: an array is anything else.
    """
    match image:
        case str() | Path():
            return Path(image)
        case Image.Image():
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        case np.ndarray(dtype=np.uint8, ndim=3, shape=(_, _, 3)):
            return np.ascontiguousarray(image)
        case np.ndarray():
            said = f"an array {image.dtype} {image.shape}"
        case _:
            said = type(image).__name__
    raise UserError(f"predict takes a file, a Pillow image or uint8 RGB (H, W, 3), not {said}")
