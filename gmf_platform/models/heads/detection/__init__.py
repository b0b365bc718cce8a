"""What detection heads are built of."""

from gmf_platform.models.heads.detection.anchors import Anchors
from gmf_platform.models.heads.detection.boxes import BoxCoder
from gmf_platform.models.heads.detection.masks import MaskHead
from gmf_platform.models.heads.detection.matching import Matcher, Sampler
from gmf_platform.models.heads.detection.pooling import RoIAlign
from gmf_platform.models.heads.detection.regions import BoxHead, BoxSettings, RegionStage
from gmf_platform.models.heads.detection.rpn import RPN, RPNSettings
from gmf_platform.models.heads.detection.selection import Detections, Selection
from gmf_platform.models.heads.detection.two_stage import TwoStageHead

__all__ = [
    "RPN",
    "Anchors",
    "BoxCoder",
    "BoxHead",
    "BoxSettings",
    "Detections",
    "MaskHead",
    "Matcher",
    "RPNSettings",
    "RegionStage",
    "RoIAlign",
    "Sampler",
    "Selection",
    "TwoStageHead",
]
