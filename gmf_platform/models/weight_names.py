"""Names that other implementations give GroupMixFormer's tensors, to the authors' published ones."""

import re
from collections.abc import Collection, Iterable

__all__ = ["official_name", "task_statistics", "unknown_parts"]

_WRAPPERS = {"module", "_orig_mod", "_checkpoint_wrapped_module"}
"""Parts that DistributedDataParallel, torch.compile and checkpoint wrappers put into names."""

# birder/net/groupmixformer.py of the package birder (checked with 0.8.4): the same network, whose
# stages count from 1 and hold their patch embedding.
_BIRDER = {
    r"^stem\.(\d)\.0\.": lambda m: f"conv_stem.proj{int(m[1]) + 1}.",
    r"^stem\.(\d)\.1\.": lambda m: f"conv_stem.norm{int(m[1]) + 1}.",
    r"^body\.stage(\d)\.patch_embed\.": lambda m: f"patch_embed_layers.{int(m[1]) - 1}.",
    r"^body\.stage(\d)\.gma_blocks\.": (
        lambda m: f"groupmixformer_backbone.{int(m[1]) - 1}.gma_stage."
    ),
    r"(gma_stage\.\d+)\.attn\.": lambda m: f"{m[1]}.att.",
    r"(gma_stage\.\d+)\.mlp\.0\.": lambda m: f"{m[1]}.mlp.fc1.",
    r"(gma_stage\.\d+)\.mlp\.3\.": lambda m: f"{m[1]}.mlp.fc2.",
    r"^features\.0\.": lambda _: "norm4.",
    r"^classifier\.": lambda _: "head.",
}

# convert_ckpt in the authors' utils.py: earlier files call the local branch local_net and number
# its parts. The fourth, a second pointwise convolution, is not in the published network.
_EARLIER = {
    r"\.local_net\.(?:0|net1)\.": lambda _: ".agg0.conv.conv1.",
    r"\.local_net\.(?:1|net2)\.": lambda _: ".agg0.conv.pointwise_conv.",
    r"\.local_net\.(?:2|norm)\.": lambda _: ".agg0.norm.",
}


def official_name(name: str) -> str:
    """The name in the authors' published checkpoints, or in ours; others stay as they are."""
    name = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
    for pattern, replacement in (_BIRDER | _EARLIER).items():
        name = re.sub(pattern, replacement, name)
    return name


def unknown_parts(names: Iterable[str]) -> list[str]:
    """Tensors of an earlier network that the published one has no place for."""
    return [name for name in names if ".local_net." in official_name(name)]


def task_statistics(found: Collection[str], own: Iterable[str]) -> dict[str, str]:
    """Running statistics of tasks that a file lacks, and which of its names they begin as.

    Args:
        found: names in the file, with or without ``backbone.`` in front.
        own: names in the model.

    Returns:
        Name that the file would have -> name that it has.
    """
    kinds = "running_mean|running_var|num_batches_tracked"
    parts = (re.fullmatch(rf"(?:backbone\.)?(.*\.(?:{kinds}))_(\w+)", name) for name in own)
    return {
        f"{prefix}{part[1]}_{part[2]}": f"{prefix}{part[1]}"
        for part in filter(None, parts)
        for prefix in ("", "backbone.")
        if f"{prefix}{part[1]}" in found and f"{prefix}{part[1]}_{part[2]}" not in found
    }
