"""Time of our GroupMixFormer beside the authors' own file and timm's Swin, on the CPU.

    git clone https://github.com/AILab-CVC/GroupMixFormer ../GroupMixFormer
    python benchmarks/backbone.py --official ../GroupMixFormer/models/groupmixformer.py

The authors' file needs the package einops. Networks take turns, so that a busy machine slows all
alike, and the smallest time of each counts.
"""

import argparse
import importlib.util
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType

import timm
import timm.layers
import timm.models
import torch
from torch import Tensor, nn

from gmf_platform.models.backbones import GroupMixFormer
from gmf_platform.models.backbones.groupmixformer import VARIANTS, Variant


def main() -> None:
    options = parse_arguments()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    images = torch.randn(options.batch, 3, options.size, options.size)
    networks = build_networks(options.variant, options.official)
    if "official" in networks:
        check_same(networks["ours"], networks["official"], images)
    for title, step in (("inference", infer), ("training step", train)):
        tasks = {name: partial(step, network, images) for name, network in networks.items()}
        times = best_times(tasks, options.runs)
        for name, seconds in times.items():
            ratio = seconds / times["ours"]
            print(f"{title:14} {name:10} {1e3 * seconds:8.1f} ms  {ratio:5.2f} x ours")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--official", type=Path, help="the authors' models/groupmixformer.py")
    parser.add_argument("--variant", choices=VARIANTS, default="tiny")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="height and width in pixels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=4, help="timed runs of each network")
    return parser.parse_args()


def build_networks(variant: Variant, official: Path | None) -> dict[str, nn.Module]:
    """Networks by name, all giving four feature maps."""
    ours = GroupMixFormer(variant, drop_path=0.0)
    networks: dict[str, nn.Module] = {"ours": ours}
    if official is not None:
        layout = VARIANTS[variant]
        networks["official"] = import_official(official).GroupMixFormer(
            embedding_dims=list(layout.embedding_dims),
            serial_depths=list(layout.depths),
            mlp_ratios=list(layout.mlp_ratios),
            drop_path_rate=0.0,
            return_interm_layers=True,
        )
        networks["official"].load_state_dict(ours.state_dict())
    networks["swin_tiny"] = timm.create_model("swin_tiny_patch4_window7_224", features_only=True)
    return networks


def import_official(path: Path) -> ModuleType:
    """Import the authors' file with today's timm and without their debugger."""
    sys.modules["ipdb"] = ModuleType("ipdb")
    sys.modules["timm.models.layers"] = timm.layers  # where timm 0.4 had them
    sys.modules["timm.models.registry"] = timm.models
    spec = importlib.util.spec_from_file_location("official_groupmixformer", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SystemExit(f"--official {path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_same(ours: nn.Module, official: nn.Module, images: Tensor) -> None:
    """A time means nothing for another result."""
    for a, b in zip(infer(ours, images), infer(official, images), strict=True):
        error = float((a - b).norm() / b.norm())
        if error > 1e-5:
            raise SystemExit(f"ours differs from the official network by {error:.1e}")


def infer(network: nn.Module, images: Tensor) -> list[Tensor]:
    with torch.inference_mode():
        return network.eval()(images)


def train(network: nn.Module, images: Tensor) -> None:
    """Forward and backward; the optimiser's step is the same for all."""
    network.train().zero_grad()
    sum(feature.square().mean() for feature in network(images)).backward()


def best_times(tasks: Mapping[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Seconds of the fastest run of each task; one more run before warms up."""
    rounds = [{name: measure(task) for name, task in tasks.items()} for _ in range(runs + 1)]
    return {name: min(seconds[name] for seconds in rounds[1:]) for name in tasks}


def measure(task: Callable[[], object]) -> float:
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
