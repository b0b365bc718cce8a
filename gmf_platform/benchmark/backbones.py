"""Backbones side by side: time, images per second and memory, of inference and of a training step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gmf_platform.benchmark.memory import StepMemory, step_memory
from gmf_platform.benchmark.networks import OURS, build_network, check_official, feature_maps
from gmf_platform.benchmark.timing import Clock, Ratio, interleaved
from gmf_platform.errors import UserError
from gmf_platform.models.backbones.groupmixformer import Variant

__all__ = [
    "COMPILED",
    "Figures",
    "MemoryFormat",
    "Mode",
    "Precision",
    "Setting",
    "build_networks",
    "compare",
]

Mode = Literal["train", "infer"]
Precision = Literal["float32", "bf16"]
MemoryFormat = Literal["channels_last", "contiguous"]

COMPILED = " compiled"
"""Behind the name of a network that goes through torch.compile."""


@dataclass(frozen=True)
class Setting:
    """What all networks of a comparison do.

    Attributes:
        mode: ``infer``, forward in evaluation; ``train``, forward and backward. The optimiser's
            step, the same for all, is left out.
        precision: ``bf16`` by autocast.
        memory_format: of images and weights.
        batch: images at once.
        size: their height and width in pixels.
    """

    mode: Mode
    precision: Precision
    memory_format: MemoryFormat
    batch: int
    size: int

    @property
    def torch_format(self) -> torch.memory_format:
        """What PyTorch calls the memory format."""
        last = self.memory_format == "channels_last"
        return torch.channels_last if last else torch.contiguous_format


@dataclass(frozen=True)
class Figures:
    """What was measured of a network in a setting.

    Attributes:
        parameters: of what gives the feature maps.
        seconds: of each run.
        images_per_second: by the fastest run.
        memory: of a training step; None in inference, and where it cannot be seen.
        ratio: its time over ours, of the same kind (compiled or not): above 1 ours is faster.
        ratio_to_compiled: its time over that of ours compiled; None if that did not run.
    """

    parameters: int
    seconds: list[float]
    images_per_second: float
    memory: StepMemory | None
    ratio: Ratio
    ratio_to_compiled: Ratio | None

    def facts(self) -> dict[str, Any]:
        """As plain numbers."""
        best, middle = min(self.seconds), median(self.seconds)
        return asdict(self) | {"best_seconds": best, "median_seconds": middle}


def build_networks(
    names: Sequence[str], variant: Variant, *, size: int, device: torch.device, compiled: bool
) -> dict[str, nn.Module]:
    """Networks by name on a device, ours first.

    Args:
        names: beside ours; see build_network.
        variant: of GroupMixFormer.
        size: of the images, in pixels.
        device: for the weights.
        compiled: have each a second time, through torch.compile.

    Raises:
        UserError: a name means nothing, or the authors' network computes something else.
    """
    networks: dict[str, nn.Module] = {}
    for name in (OURS, *names):
        torch.manual_seed(0)
        networks[name] = build_network(name, variant, size=size)
        if name.startswith("official:"):
            check_official(networks[OURS], networks[name], torch.randn(1, 3, size, size))
    networks = {name: network.to(device) for name, network in networks.items()}
    if compiled:
        networks |= {f"{name}{COMPILED}": network for name, network in networks.items()}
    return networks


def compare(
    networks: Mapping[str, nn.Module],
    setting: Setting,
    *,
    runs: int,
    device: torch.device,
    clock: Clock = "wall",
) -> dict[str, Figures]:
    """Measure networks in turns.

    Args:
        networks: by name, ours first; those compiled are named so.
        setting: what they do.
        runs: timed rounds.
        device: where the weights are.
        clock: see interleaved.

    Raises:
        UserError: a network cannot do it.
    """
    images = _images(setting, device)
    sides = {name: _Side(name, net, images, setting) for name, net in networks.items()}
    for side in sides.values():
        side.try_out()
    tasks = {name: side.run for name, side in sides.items()}
    seconds = interleaved(tasks, runs=runs, device=device, clock=clock)
    ours_compiled = seconds.get(f"{OURS}{COMPILED}")
    return {
        name: Figures(
            parameters=sum(p.numel() for p in networks[name].parameters()),
            seconds=times,
            images_per_second=setting.batch / min(times),
            memory=sides[name].memory(),
            ratio=Ratio.of(times, seconds[_ours_for(name)]),
            ratio_to_compiled=None if ours_compiled is None else Ratio.of(times, ours_compiled),
        )
        for name, times in seconds.items()
    }


def _ours_for(name: str) -> str:
    return f"{OURS}{COMPILED}" if name.endswith(COMPILED) else OURS


def _images(setting: Setting, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (setting.batch, 3, setting.size, setting.size)
    images = torch.randn(shape, generator=generator).to(device)
    return images.to(memory_format=setting.torch_format)


class _Side:
    """A network with its work."""

    def __init__(self, name: str, network: nn.Module, images: Tensor, setting: Setting) -> None:
        network.train(setting.mode == "train").to(memory_format=setting.torch_format)
        self.name, self.network, self.images, self.setting = name, network, images, setting
        self.compiled = name.endswith(COMPILED)
        self.maps: Callable[[], list[Tensor]] = self._maps
        if self.compiled:
            self.maps = torch.compile(self._maps)

    def _maps(self) -> list[Tensor]:
        bf16 = self.setting.precision == "bf16"
        with torch.autocast(self.images.device.type, torch.bfloat16, enabled=bf16):
            return feature_maps(self.network, self.images)

    def _loss(self) -> Tensor:
        """Something that every map has a part in, and that costs next to nothing."""
        return torch.stack([x.float().square().mean() for x in self.maps()]).sum()

    def run(self) -> None:
        """Do the work once."""
        if self.setting.mode == "infer":
            with torch.inference_mode():
                self.maps()
            return
        self.network.zero_grad()
        self._loss().backward()

    def try_out(self) -> None:
        """Do it a first time, compiling included."""
        try:
            self.run()
        except (AssertionError, RuntimeError) as error:
            said = str(error).partition("\n")[0]
            raise UserError(f"{self.name} cannot do that: {said}") from error

    def memory(self) -> StepMemory | None:
        """Of a training step."""
        if self.setting.mode == "infer":
            return None
        self.network.zero_grad()
        device = self.images.device
        found = step_memory(self._loss, device=device, compiled=self.compiled)
        self.network.zero_grad()
        return found
