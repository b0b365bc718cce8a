"""From predictions to scores."""

from gmf_platform.evaluation.coco import CocoBackend, CocoEvaluator
from gmf_platform.evaluation.coco_scores import CocoScores
from gmf_platform.evaluation.detection import ImageDetections, at_original_size
from gmf_platform.evaluation.detection_inference import (
    DetectionInference,
    DetectionTestTimeAugmentation,
)
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
from gmf_platform.evaluation.top_k import ClassificationScores, Guesses, TopK, most_probable

__all__ = [
    "ClassificationScores",
    "CocoBackend",
    "CocoEvaluator",
    "CocoScores",
    "DetectionInference",
    "DetectionTestTimeAugmentation",
    "Guesses",
    "ImageDetections",
    "Inference",
    "MeanIoU",
    "OneScale",
    "SegmentationScores",
    "SlidingWindow",
    "TestTimeAugmentation",
    "TopK",
    "View",
    "WholeImage",
    "at_original_size",
    "labels_at_original_size",
    "labels_by_mean_probability",
    "most_probable",
]
