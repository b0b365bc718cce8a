"""Losses of dense prediction."""

from gmf_platform.models.losses.segmentation import (
    CrossEntropy,
    Dice,
    Focal,
    OhemCrossEntropy,
    SegmentationLoss,
    Sum,
)

__all__ = ["CrossEntropy", "Dice", "Focal", "OhemCrossEntropy", "SegmentationLoss", "Sum"]
