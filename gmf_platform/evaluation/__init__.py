"""From predictions to scores."""

from gmf_platform.evaluation.inference import (
    Inference,
    OneScale,
    SlidingWindow,
    TestTimeAugmentation,
    WholeImage,
)
from gmf_platform.evaluation.mean_iou import MeanIoU, SegmentationScores
from gmf_platform.evaluation.segmentation import (
    View,
    labels_at_original_size,
    labels_by_mean_probability,
)

__all__ = [
    "Inference",
    "MeanIoU",
    "OneScale",
    "SegmentationScores",
    "SlidingWindow",
    "TestTimeAugmentation",
    "View",
    "WholeImage",
    "labels_at_original_size",
    "labels_by_mean_probability",
]
