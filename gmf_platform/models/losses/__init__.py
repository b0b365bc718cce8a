"""Losses of dense prediction and of classification."""

from gmf_platform.models.losses.classification import SoftTargetCrossEntropy
from gmf_platform.models.losses.segmentation import (
    CrossEntropy,
    Dice,
    Focal,
    OhemCrossEntropy,
    SegmentationLoss,
    Sum,
)

__all__ = [
    "CrossEntropy",
    "Dice",
    "Focal",
    "OhemCrossEntropy",
    "SegmentationLoss",
    "SoftTargetCrossEntropy",
    "Sum",
]
