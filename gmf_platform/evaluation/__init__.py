"""From predictions to scores."""

from gmf_platform.evaluation.mean_iou import MeanIoU, SegmentationScores
from gmf_platform.evaluation.segmentation import labels_at_original_size

__all__ = ["MeanIoU", "SegmentationScores", "labels_at_original_size"]
