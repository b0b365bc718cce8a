"""Backbones of the package timm, for comparison with GroupMixFormer under one recipe."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from timm.models import model_entrypoint
from torch import Tensor, nn

from gmf_platform.errors import UserError
from gmf_platform.models.backbones.timm_parts import exchange_batch_norms, layers_by_stage
from gmf_platform.models.normalize import IMAGENET_MEAN, IMAGENET_STD
from gmf_platform.ranges import PositiveInt, UnitInterval

__all__ = ["TimmBackbone"]

# Files under timm/models whose networks give maps straight from a residual stream. The detection
# and segmentation code of their authors puts a LayerNorm behind each: SwinTransformer,
# facebookresearch/ConvNeXt, microsoft/FocalNet, dingmyu/davit and, for MViTv2, detectron2.
_WITHOUT_LAST_NORM = {
    "convnext",
    "davit",
    "focalnet",
    "mvitv2",
    "swin_transformer",
    "swin_transformer_v2",
}

# How timm is told to take images of any size: what a network does not know, it refuses.
_ANY_SIZE: tuple[dict[str, Any], ...] = (
    {"strict_img_size": False},
    {"dynamic_img_size": True},
    {},
)


class TimmBackbone(nn.Module):
    """A network of timm's as a backbone: feature maps at strides 4, 8, 16 and 32.

    Images are padded to a multiple of ``divisor`` on the right and below, and the maps cut to what
    belongs to the image. Batch norms are exchanged for ours, so that the task's ``norm`` is obeyed.

    Args:
        name: of the model, as timm knows it: ``swin_tiny_patch4_window7_224``.
        pretrained: begin with timm's weights, which it downloads.
        drop_path: chance to skip a block in training, at the last block; None: as timm has it.
        output_norm: put a LayerNorm behind each map. ``auto``: where the authors of the network do
            for detection and segmentation.
        divisor: sides of images are padded to a multiple of it; more than 32 for networks of fixed
            windows (224 for ``maxvit_tiny_tf_224``).
        options: further arguments of timm's model.

    Attributes:
        channels: Channels C_i of the feature maps.
        strides: Pixels between neighbours in them.

    Raises:
        UserError: timm has no such model, or it gives no four maps at these strides for images of
            any size.
    """

    strides = (4, 8, 16, 32)
    scale: Tensor | None
    shift: Tensor | None

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = False,
        drop_path: UnitInterval | None = None,
        output_norm: bool | Literal["auto"] = "auto",
        divisor: PositiveInt = 32,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        _check_name(name)
        self.name, self.divisor = name, divisor
        arguments = {} if drop_path is None else {"drop_path_rate": drop_path}
        self.model = _create(name, pretrained, arguments | (options or {}))
        info: Any = self.model.feature_info
        self.modules_of_maps: list[str] = info.module_name()
        self.levels = _levels(name, info.reduction(), self.strides)
        self.channels = tuple(info.channels()[level] for level in self.levels)
        self.channels_last = str(getattr(self.model, "output_fmt", "")).endswith("NHWC")
        if output_norm == "auto":
            output_norm = model_entrypoint(name).__module__.split(".")[-1] in _WITHOUT_LAST_NORM
        self.norms = nn.ModuleList(
            nn.LayerNorm(channels) if output_norm else nn.Identity() for channels in self.channels
        )
        exchange_batch_norms(self.model)
        self._set_normalization()
        self._try_out()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the feature maps.

        Args:
            images: Normalised images (B, 3, H, W).

        Returns:
            Four maps (B, C_i, ceil(H / s_i), ceil(W / s_i)).
        """
        height, width = images.shape[-2:]
        if self.scale is not None and self.shift is not None:
            images = images * self.scale + self.shift
        maps = self.model(F.pad(images, (0, -width % self.divisor, 0, -height % self.divisor)))
        found = []
        for level, stride, norm in zip(self.levels, self.strides, self.norms, strict=True):
            tokens = maps[level] if self.channels_last else maps[level].permute(0, 2, 3, 1)
            # Not -(-n // stride): in an exported graph ONNX divides integers towards zero.
            rows, columns = ((n + stride - 1) // stride for n in (height, width))
            tokens = norm(tokens[:, :rows, :columns])
            found.append(tokens.permute(0, 3, 1, 2))
        return found

    def layers_by_stage(self) -> list[list[list[nn.Module]]]:
        """Modules by layer, layers by stage, for learning rates by layer and frozen stages.

        A layer is a block of timm's, with what lies between it and the block before; the norms
        behind the maps are in none.

        Raises:
            UserError: The network is not built of stages one behind the other.
        """
        parts = {name for name, _ in self.model.named_modules()}
        stages = []
        for level in self.levels:
            name = self.modules_of_maps[level]
            ways = (name, name.replace(".", "_"))  # timm flattens what it takes apart
            if parts.isdisjoint(ways):
                raise UserError(
                    f"timm's {self.name} is not built of stages one behind the other, so its "
                    "layers cannot be told apart: leave out model.layer_decay and "
                    "model.frozen_stages, or take another network"
                )
            stages.append(next(way for way in ways if way in parts))
        return layers_by_stage(self.model, stages)

    def _set_normalization(self) -> None:
        """From images normalised for ImageNet, as ours are, to what timm's weights expect."""
        config: Any = self.model.pretrained_cfg
        ours = zip(IMAGENET_MEAN, IMAGENET_STD, config["mean"], config["std"], strict=True)
        factors = [
            (std / 255 / their_std, (mean / 255 - their_mean) / their_std)
            for mean, std, their_mean, their_std in ours
        ]
        same = all(abs(scale - 1) < 1e-6 and abs(shift) < 1e-6 for scale, shift in factors)
        for key, values in zip(("scale", "shift"), zip(*factors, strict=True), strict=True):
            value = None if same else torch.tensor(values).view(1, 3, 1, 1)
            self.register_buffer(key, value, persistent=False)

    @torch.no_grad()
    def _try_out(self) -> None:
        """See in the first second, not in the first step, whether images of any size pass."""
        height, width = (max(64, self.divisor), max(96, 2 * self.divisor))
        device, was_training = next(self.parameters()).device, self.training
        try:
            maps = self.eval()(torch.zeros(1, 3, height, width, device=device))
        except (AssertionError, RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise UserError(
                f"timm's {self.name} does not take images of {height}x{width} pixels ({reason}): "
                "set the backbone's divisor to a side that its windows divide (224 for most models "
                "of 224 pixels), or take one for any size, such as swin_tiny_patch4_window7_224"
            ) from error
        self.train(was_training)
        sizes = [tuple(map_.shape[1:]) for map_ in maps]
        expected = [
            (channels, -(-height // stride), -(-width // stride))
            for channels, stride in zip(self.channels, self.strides, strict=True)
        ]
        if sizes != expected:
            raise UserError(
                f"timm's {self.name} gives maps of {sizes} for images of {height}x{width} pixels, "
                f"where a backbone gives {expected}: take another model"
            )


def _check_name(name: str) -> None:
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() names them all"
        raise UserError(f"backbone name: timm {timm.__version__} has no model {name!r}: {hint}")


def _create(name: str, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
    """Build the feature extractor; for images of any size where the network knows of such."""
    reason = ""
    for any_size in _ANY_SIZE:
        try:
            return timm.create_model(
                name, pretrained=pretrained, features_only=True, **any_size, **arguments
            )
        except (TypeError, RuntimeError, OSError) as error:
            reason = str(error).partition("\n")[0]
            if pretrained and not isinstance(error, TypeError):
                break
    raise UserError(
        f"timm cannot make a backbone of {name} with {arguments}, pretrained: {pretrained}: {reason}"
    )


def _levels(name: str, found: Sequence[int], strides: Sequence[int]) -> list[int]:
    """Which of the maps have the strides; the last one of each."""
    if not set(strides) <= set(found):
        raise UserError(
            f"timm's {name} gives maps at strides {', '.join(map(str, found))}; a backbone needs "
            f"{', '.join(map(str, strides))}. Take a network with a pyramid, such as "
            "swin_tiny_patch4_window7_224, convnext_tiny, pvt_v2_b2 or resnet50"
        )
    return [max(i for i, stride in enumerate(found) if stride == wanted) for wanted in strides]
