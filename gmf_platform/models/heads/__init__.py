"""Heads: feature maps in, predictions of one task out."""

from gmf_platform.models.heads.cascade_mask_rcnn import CascadeMaskRCNN
from gmf_platform.models.heads.classification import ClassificationHead
from gmf_platform.models.heads.detection import Detections
from gmf_platform.models.heads.faster_rcnn import FasterRCNN
from gmf_platform.models.heads.fcn import FCNHead
from gmf_platform.models.heads.mask_rcnn import MaskRCNN
from gmf_platform.models.heads.retinanet import RetinaNet
from gmf_platform.models.heads.semantic_fpn import SemanticFPN, SemanticFPNHead
from gmf_platform.models.heads.upernet import UPerNet

__all__ = [
    "CascadeMaskRCNN",
    "ClassificationHead",
    "Detections",
    "FCNHead",
    "FasterRCNN",
    "MaskRCNN",
    "RetinaNet",
    "SemanticFPN",
    "SemanticFPNHead",
    "UPerNet",
]
