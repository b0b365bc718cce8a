"""LightningModules, one a task."""

from gmf_platform.tasks.base import BaseTask
from gmf_platform.tasks.classification import ClassificationTask
from gmf_platform.tasks.detection import DetectionTask
from gmf_platform.tasks.multitask import MultiTask
from gmf_platform.tasks.segmentation import SegmentationTask

__all__ = ["BaseTask", "ClassificationTask", "DetectionTask", "MultiTask", "SegmentationTask"]
