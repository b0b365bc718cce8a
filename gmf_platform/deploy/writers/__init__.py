"""Predictions to files, one writer a task."""

from gmf_platform.deploy.writers.base import PredictionWriter
from gmf_platform.deploy.writers.classification import ClassificationWriter
from gmf_platform.deploy.writers.detection import DetectionWriter
from gmf_platform.deploy.writers.joint import JointWriter
from gmf_platform.deploy.writers.segmentation import SegmentationWriter

__all__ = [
    "ClassificationWriter",
    "DetectionWriter",
    "JointWriter",
    "PredictionWriter",
    "SegmentationWriter",
]
