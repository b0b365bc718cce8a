"""A training step in a file: all that it takes to make it again on one device."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gmf_platform.errors import UserError

__all__ = ["Capture"]

_KIND = "gmf_platform capture"


@dataclass
class Capture:
    """One process's part of an optimiser step.

    Attributes:
        step: number of the step, the run's first being 1.
        rank: of the process.
        world_size: processes that made the step together.
        precision: as ``trainer.precision`` would say it to one device.
        loss_scale: of float16; None where the loss is not scaled.
        seeds: of the randomness of each micro-batch.
        batches: the micro-batches as the task got them, on the CPU.
        state_dict: of the task before the step, its buffers as before the forward pass.
        class_names: of the data.
        config: the run's resolved config, YAML.
    """

    step: int
    rank: int
    world_size: int
    precision: str
    loss_scale: float | None
    seeds: list[int]
    batches: list[Any]
    state_dict: dict[str, Tensor]
    class_names: list[str]
    config: str

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        temporary = path.with_name(f".{path.name}.partial")
        torch.save({"kind": _KIND} | content | {"batches": _plain(self.batches)}, temporary)
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Capture":
        """Read a file.

        Raises:
            UserError: it is not there, damaged, or no capture.
        """
        if not path.is_file():
            raise UserError(
                f"no capture {path}: --guard.mode capture writes them to captures/ in the run"
            )
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # noqa: BLE001 - damage may look like anything
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{path} is damaged, or no capture: {reason}") from None
        if not isinstance(content, dict) or content.pop("kind", None) != _KIND:
            raise UserError(f"{path} is no capture: --guard.mode capture writes them")
        return cls(**content)

    def ids(self) -> list[list[str]]:
        """Names of the samples of each micro-batch."""
        return [[str(name) for name in batch["ids"]] for batch in self.batches]


def _plain(value: Any) -> Any:
    """Tensors on the CPU and plain types, which can be read without running code."""
    match value:
        case Tensor():
            return value.detach().as_subclass(Tensor).cpu()
        case Mapping():
            return {key: _plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_plain(inner) for inner in value]
        case bool() | int() | float() | str() | None:
            return value
        case _:
            return str(value)
