"""GroupMixFormer and the networks that it is measured beside, all giving feature maps."""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from gmf_platform.errors import UserError
from gmf_platform.models.backbones import GroupMixFormer
from gmf_platform.models.backbones.groupmixformer import VARIANTS, Variant

__all__ = ["OURS", "build_network", "check_official", "feature_maps"]

OURS = "ours"

_BIRDER = {"mobile": "mobile", "tiny": "t", "small": "s", "base": "b", "large": "l"}
"""What birder calls the variants."""

_LARGEST_ERROR = 1e-5
"""Relative, of the authors' network beside ours with the same weights in float32."""


def build_network(name: str, variant: Variant, *, size: int) -> nn.Module:
    """A network in which nothing is dropped at random.

    Args:
        name: ``ours``; ``checkpointing``, ours with it; ``birder``, its GroupMixFormer;
            ``timm:NAME``; ``official:FILE``, the authors' models/groupmixformer.py.
        variant: of GroupMixFormer, wherever it comes from.
        size: height and width of the images, in pixels.

    Raises:
        UserError: the name means nothing, or what it needs is not there.
    """
    kind, _, what = name.partition(":")
    match kind:
        case "ours":
            return GroupMixFormer(variant, drop_path=0.0)
        case "checkpointing":
            return GroupMixFormer(variant, drop_path=0.0, checkpointing=True)
        case "birder":
            return _from_birder(variant)
        case "timm" if what:
            return _from_timm(what, size)
        case "official" if what:
            return _from_authors(Path(what), variant)
    raise UserError(
        f"--against {name}: checkpointing, birder, timm:NAME (timm:swin_tiny_patch4_window7_224) "
        "or official:FILE (the authors' models/groupmixformer.py)"
    )


def feature_maps(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Feature maps of images (B, 3, H, W), as each network gives them."""
    forward: Any = getattr(network, "detection_features", network)
    maps = forward(images)
    return list(maps.values()) if isinstance(maps, dict) else list(maps)


def check_official(ours: nn.Module, official: nn.Module, images: Tensor) -> None:
    """Make sure that both compute the same: a time means nothing for another result.

    Raises:
        UserError: with our weights the authors' network gives something else.
    """
    official.load_state_dict(ours.state_dict())
    with torch.inference_mode():
        pairs = zip(ours.eval()(images), official.eval()(images), strict=True)
        error = max(float((a - b).norm() / b.norm()) for a, b in pairs)
    if error > _LARGEST_ERROR:
        raise UserError(f"ours differs from the authors' network by {error:.1e}")


def _from_birder(variant: Variant) -> nn.Module:
    registry = _imported("birder.model_registry", "birder").registry
    name = f"groupmixformer_{_BIRDER[variant]}"
    network: nn.Module = registry.net_factory(name, 1000, config={"drop_path_rate": 0.0})
    for part in ("features", "classifier"):  # take no part in feature maps
        setattr(network, part, nn.Identity())
    return network


def _from_timm(name: str, size: int) -> nn.Module:
    timm = _imported("timm", "timm")
    if not timm.is_model(name):
        raise UserError(f"--against timm:{name}: timm {timm.__version__} has no such model")
    options: Sequence[dict[str, Any]] = ({"img_size": size, "drop_path_rate": 0.0}, {})
    for given in options:  # what a network does not know, it refuses
        try:
            return timm.create_model(name, features_only=True, **given)
        except TypeError:
            continue
    raise UserError(f"--against timm:{name}: gives no feature maps")


def _from_authors(path: Path, variant: Variant) -> nn.Module:
    layout = VARIANTS[variant]
    module = _import_official(path)
    network: nn.Module = module.GroupMixFormer(
        embedding_dims=list(layout.embedding_dims),
        serial_depths=list(layout.depths),
        mlp_ratios=list(layout.mlp_ratios),
        drop_path_rate=0.0,
        return_interm_layers=True,
    )
    return network


def _import_official(path: Path) -> ModuleType:
    """Import the authors' file with today's timm and without their debugger."""
    if not path.is_file():
        raise UserError(f"--against official:{path}: no such file")
    timm = _imported("timm", "timm")
    _imported("einops", "einops")
    sys.modules["ipdb"] = ModuleType("ipdb")
    sys.modules["timm.models.layers"] = timm.layers  # where timm 0.4 had them
    sys.modules["timm.models.registry"] = timm.models
    spec = importlib.util.spec_from_file_location("official_groupmixformer", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--against official:{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _imported(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"--against: {package} cannot be imported ({error}): pip install 'gmf_platform[bench]'"
        ) from None
