"""Heads: feature maps in, predictions of one task out."""

from gmf_platform.models.heads.classification import ClassificationHead
from gmf_platform.models.heads.fcn import FCNHead
from gmf_platform.models.heads.semantic_fpn import SemanticFPN, SemanticFPNHead
from gmf_platform.models.heads.upernet import UPerNet

__all__ = ["ClassificationHead", "FCNHead", "SemanticFPN", "SemanticFPNHead", "UPerNet"]
