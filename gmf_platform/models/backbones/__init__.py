"""Backbones: images in, feature maps at strides 4, 8, 16 and 32 out."""

from gmf_platform.models.backbones.group_mix_attention import GroupMixAttention
from gmf_platform.models.backbones.groupmixformer import GroupMixFormer
from gmf_platform.models.backbones.timm_backbone import TimmBackbone

__all__ = ["GroupMixAttention", "GroupMixFormer", "TimmBackbone"]
