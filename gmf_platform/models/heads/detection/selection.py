"""From scored boxes to detections."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torchvision.ops import batched_nms

from gmf_platform.ranges import PositiveInt, UnitInterval

__all__ = ["Detections", "Selection", "suppress"]


class Detections(NamedTuple):
    """What is seen in one image, by falling score.

    Attributes:
        boxes: float32 (N, 4) x1, y1, x2, y2 in pixels of the network's input, inside the image.
        scores: float32 (N,) 0..1.
        labels: int64 (N,) 0..K-1.
        masks: float32 (N, 28, 28) probabilities inside the box, or None.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None


@dataclass(frozen=True)
class Selection:
    """Which boxes of a class become detections; the defaults are those of all recipes.

    Args:
        min_score: boxes that score this or less are dropped.
        max_overlap: with a better box of the same class, that a box may have.
        number: of detections per image at most.
    """

    min_score: UnitInterval = 0.05
    max_overlap: UnitInterval = 0.5
    number: PositiveInt = 100

    def __call__(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Detections:
        """Select among boxes (N, 4) of one image with scores (N,) above the least, labels (N,)."""
        kept = suppress(boxes, scores, labels, max_overlap=self.max_overlap, number=self.number)
        return Detections(boxes[kept].float(), scores[kept].float(), labels[kept])


def suppress(
    boxes: Tensor, scores: Tensor, groups: Tensor, *, max_overlap: float, number: int
) -> Tensor:
    """Indices of the best boxes, by falling score: non-maximum suppression within each group.

    Empty boxes are dropped.

    Args:
        boxes: (N, 4).
        scores: (N,) of any range.
        groups: (N,) integers; boxes of different groups do not suppress each other.
        max_overlap: with a better box, that a box may have.
        number: at most.
    """
    solid = (boxes[:, 2:] > boxes[:, :2]).all(1).nonzero()[:, 0]
    kept: Tensor = batched_nms(boxes[solid], scores[solid], groups[solid], max_overlap)
    return solid[kept[:number]]
