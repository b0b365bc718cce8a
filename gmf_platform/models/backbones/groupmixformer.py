"""GroupMixFormer, the backbone: four stages of Group-Mix Attention (arXiv 2311.15157)."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gmf_platform.errors import UserError
from gmf_platform.models.backbones.group_mix_attention import (
    Aggregated,
    GroupMixAttention,
    SeparableConv,
)
from gmf_platform.models.norm import BatchNorm, LayerNorm, statistics_kept
from gmf_platform.models.token_ops import depthwise, mlp
from gmf_platform.ranges import PositiveFloat, PositiveInt, UnitInterval

__all__ = ["VARIANTS", "GroupMixFormer", "Layout", "Variant"]

Variant = Literal["mobile", "tiny", "small", "base", "large"]

MIN_SIZE = 64
"""Smallest image side, in pixels: two tokens at the last stage."""


@dataclass(frozen=True)
class Layout:
    """The numbers that tell one variant from another."""

    embedding_dims: tuple[int, ...]
    depths: tuple[int, ...]
    mlp_ratios: tuple[float, ...]
    drop_path: float


# configs/groupmixformer_{miny,tiny,small,base,large}.yaml of the authors' repository
# (github.com/AILab-CVC/GroupMixFormer). Its file for large says "need to adjust": its layout has
# 71.8 M parameters where the paper's has 70.3 M. Its drop path, 0.1 as for tiny, is not taken over:
# large has the 0.5 of base.
VARIANTS: dict[Variant, Layout] = {
    "mobile": Layout((40, 80, 160, 160), (3, 3, 12, 4), (4, 4, 4, 4), 0.1),
    "tiny": Layout((80, 160, 200, 240), (4, 4, 12, 4), (4, 4, 4, 4), 0.1),
    "small": Layout((80, 160, 320, 320), (2, 4, 12, 4), (4, 4, 4, 4), 0.2),
    "base": Layout((200, 240, 320, 480), (8, 8, 12, 8), (2, 2, 4, 4), 0.5),
    "large": Layout((240, 320, 360, 480), (8, 10, 30, 10), (4, 4, 2, 2), 0.5),
}


class GroupMixFormer(nn.Module):
    """Feature maps at strides 4, 8, 16 and 32.

    The state dict has the keys of the authors' checkpoints, less ``norm4`` and ``head``, which
    belong to the classification head.

    Args:
        variant: Which of the paper's networks.
        drop_path: Chance to skip a block in training, at the last block; it grows linearly from 0
            at the first. None takes the variant's.
        checkpointing: Recompute the insides of each block in the backward pass, which saves most
            of the activations' memory for about a third more time.
        embedding_dims: Channels of the four stages, for a network of your own (multiples of 10).
        depths: Blocks of the four stages, likewise.
        mlp_ratios: Hidden channels of the MLPs over those of the stage, likewise.
        kernel_sizes: Tokens along a side of the groups of attention, for an ablation; this and the
            arguments that follow are as published, and described at GroupMixAttention.
        local_branch: Whether attention has its convolved segment, likewise.
        aggregated: Which of Q, K and V see groups of tokens, likewise.
        relative_positions: Whether attention has the term of relative positions, likewise.

    Attributes:
        channels: Channels C_i of the feature maps.
        strides: Pixels between neighbours in them.

    Raises:
        UserError: If a network of your own is not one of four stages, or its channels do not split.
    """

    strides = (4, 8, 16, 32)

    def __init__(
        self,
        variant: Variant = "tiny",
        *,
        drop_path: UnitInterval | None = None,
        checkpointing: bool = False,
        embedding_dims: tuple[PositiveInt, ...] | None = None,
        depths: tuple[PositiveInt, ...] | None = None,
        mlp_ratios: tuple[PositiveFloat, ...] | None = None,
        kernel_sizes: tuple[PositiveInt, ...] = (3, 5, 7),
        local_branch: bool = True,
        aggregated: Aggregated = "qkv",
        relative_positions: bool = True,
    ) -> None:
        super().__init__()
        layout = VARIANTS[variant]
        dims = tuple(layout.embedding_dims if embedding_dims is None else embedding_dims)
        depths = tuple(layout.depths if depths is None else depths)
        ratios = tuple(layout.mlp_ratios if mlp_ratios is None else mlp_ratios)
        if not len(dims) == len(depths) == len(ratios) == len(self.strides):
            raise UserError(
                f"GroupMixFormer has {len(self.strides)} stages, but was given embedding_dims="
                f"{dims}, depths={depths}, mlp_ratios={ratios}. Give one number for each stage."
            )
        max_drop = layout.drop_path if drop_path is None else drop_path
        if not 0 <= max_drop < 1:
            raise UserError(f"GroupMixFormer: drop_path {max_drop} is no chance from 0 to below 1")

        self.channels = dims
        self.conv_stem = ConvStem(dims[0])
        self.patch_embed_layers = nn.ModuleList(
            [PatchEmbed(dims[0], dims[0], stride=1)]
            + [PatchEmbed(a, b, stride=2) for a, b in pairwise(dims)]
        )
        attention = partial(
            GroupMixAttention,
            kernel_sizes=kernel_sizes,
            local_branch=local_branch,
            aggregated=aggregated,
            relative_positions=relative_positions,
        )
        last = max(sum(depths) - 1, 1)
        drops = iter(max_drop * i / last for i in range(sum(depths)))
        self.groupmixformer_backbone = nn.ModuleList(
            Stage([Block(dim, ratio, next(drops), attention) for _ in range(depth)], checkpointing)
            for dim, depth, ratio in zip(dims, depths, ratios, strict=True)
        )
        self.apply(_init_weights)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the feature maps.

        Args:
            images: Normalised images (B, 3, H, W), H and W at least 64.

        Returns:
            Four maps (B, C_i, ceil(H / s_i), ceil(W / s_i)), channels-last in memory.

        Raises:
            UserError: If the images are smaller.
        """
        height, width = images.shape[-2:]
        if min(height, width) < MIN_SIZE:
            raise UserError(
                f"GroupMixFormer got images of {height}x{width} pixels; it needs at least "
                f"{MIN_SIZE}x{MIN_SIZE}. Resize or pad them, or use a larger crop."
            )
        return [x.permute(0, 3, 1, 2) for x in self._stages(images)]

    def layers_by_stage(self) -> list[list[list[nn.Module]]]:
        """Modules by layer, layers by stage, for learning rates by layer and frozen stages.

        The stem is the first stage, with the first patch embedding; each later one belongs to the
        first block behind it.
        """
        first, *embeddings = self.patch_embed_layers
        blocks = [stage.get_submodule("gma_stage") for stage in self.groupmixformer_backbone]
        stages = [[[block] for block in stage.children()] for stage in blocks]
        for embedding, layers in zip(embeddings, stages[1:], strict=True):
            layers[:1] = [[embedding, *(layers[0] if layers else [])]]
        return [[[self.conv_stem, first]], *stages]

    def _stages(self, images: Tensor) -> Iterator[Tensor]:
        x = self.conv_stem(images)
        for patch_embed, stage in zip(
            self.patch_embed_layers, self.groupmixformer_backbone, strict=True
        ):
            x = stage(patch_embed(x))
            yield x  # (B, H_i, W_i, C_i)


class ConvStem(nn.Module):
    """Images (B, 3, H, W) to tokens (B, ceil(H / 4), ceil(W / 4), dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj1 = nn.Conv2d(3, dim // 2, 3, stride=2, padding=1)
        self.norm1 = BatchNorm(dim // 2)
        self.proj2 = nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1)
        self.norm2 = BatchNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        x = images.contiguous(memory_format=torch.channels_last)
        x = self.norm1(self.proj1(x), hardswish=True)
        x = self.norm2(self.proj2(x), hardswish=True)
        return x.permute(0, 2, 3, 1)


class PatchEmbed(nn.Module):
    """Tokens (B, H, W, inputs) to tokens (B, ceil(H / stride), ceil(W / stride), outputs)."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.proj = SeparableConv(inputs, outputs, kernel_size=3, stride=stride)
        self.norm = BatchNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        gathered, weight = self.proj.gather(x), self.proj.weight
        return self.norm.forward_tokens(gathered, weight_before=weight, hardswish=True)

    def borrowed_parameters(self) -> Iterator[Tensor]:
        """See `GroupMixAttention.borrowed_parameters`."""
        return self.proj.parameters()


class Stage(nn.Module):
    """Blocks in a row, on tokens (B, H, W, C)."""

    def __init__(self, blocks: list["Block"], checkpointing: bool) -> None:
        super().__init__()
        self.gma_stage = nn.ModuleList(blocks)
        self.checkpointing = checkpointing

    def forward(self, x: Tensor) -> Tensor:
        for block in self.gma_stage:
            x = _checkpointed(block, x) if self.checkpointing and self.training else block(x)
        return x


class Block(nn.Module):
    """Positions by convolution, Group-Mix Attention, MLP; each added to tokens (B, H, W, C)."""

    def __init__(
        self,
        dim: int,
        mlp_ratio: float,
        drop_path: float,
        attention: Callable[[int], nn.Module] = GroupMixAttention,
    ) -> None:
        super().__init__()
        self.cpe = ConvPosition(dim)
        self.norm1 = LayerNorm(dim, eps=1e-6)
        self.att = attention(dim)
        self.norm2 = LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = _add(x, self.cpe(x))
        x = _add(x, self.drop_path(self.att(self.norm1(x))))
        return _add(x, self.drop_path(self.mlp(self.norm2(x))))


class ConvPosition(nn.Module):
    """Positions from a depthwise 3x3 convolution, whose zero padding shows where the border is."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def borrowed_parameters(self) -> Iterator[Tensor]:
        """See `GroupMixAttention.borrowed_parameters`."""
        return self.proj.parameters()

    def forward(self, x: Tensor) -> Tensor:
        return depthwise(x, self.proj.weight, self.proj.bias)


class Mlp(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def borrowed_parameters(self) -> Iterator[Tensor]:
        """See `GroupMixAttention.borrowed_parameters`."""
        return self.parameters()

    def forward(self, x: Tensor) -> Tensor:
        return mlp(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)


def _add(x: Tensor, branch: Tensor) -> Tensor:
    """The sum; in inference in the memory of the branch."""
    return x + branch if torch.is_grad_enabled() else branch.add_(x)


def _checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        # A compiled graph writes its buffers once, however often it recomputes.
        return checkpoint(block, x, use_reentrant=False)
    # The repetition must not count the batch in the running statistics again.
    return checkpoint(
        block, x, use_reentrant=False, context_fn=lambda: (nullcontext(), statistics_kept(block))
    )


def _init_weights(module: nn.Module) -> None:
    """Linear layers as the authors have them; norms and convolutions keep PyTorch's defaults."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
