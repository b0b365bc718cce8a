"""Faster R-CNN (Ren et al., arXiv 1506.01497) on a feature pyramid."""

from collections.abc import Sequence

from gmf_platform.models.heads.detection.pooling import RoIAlign
from gmf_platform.models.heads.detection.regions import BoxHead, BoxSettings, RegionStage
from gmf_platform.models.heads.detection.rpn import RPN, RPNSettings
from gmf_platform.models.heads.detection.selection import Selection
from gmf_platform.models.heads.detection.two_stage import TwoStageHead
from gmf_platform.models.necks.fpn import FPN
from gmf_platform.ranges import NonNegativeInt, PositiveInt

__all__ = ["FasterRCNN"]

# mmdetection, configs/_base_/models/faster-rcnn_r50_fpn.py, as all defaults below.
RPN_SETTINGS, BOX_SETTINGS, SELECTION = RPNSettings(), BoxSettings(), Selection()


class FasterRCNN(TwoStageHead):
    """Boxes: proposals from P2 to P6, and one look at each in P2 to P5.

    Args:
        in_channels: Channels of the backbone's maps, strides 4 to 32.
        num_classes: Number of classes K.
        channels: Channels of the pyramid.
        width: Of the two linear layers of the box branch.
        rpn: Settings of the proposals.
        box: Settings of the boxes.
        sampling_ratio: See `RoIAlign`.
        aligned: See `RoIAlign`.
        selection: Which boxes become detections.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        channels: PositiveInt = 256,
        width: PositiveInt = 1024,
        rpn: RPNSettings = RPN_SETTINGS,
        box: BoxSettings = BOX_SETTINGS,
        sampling_ratio: NonNegativeInt = 0,
        aligned: bool = True,
        selection: Selection = SELECTION,
    ) -> None:
        pool = RoIAlign(7, sampling_ratio=sampling_ratio, aligned=aligned)
        head = BoxHead(channels, num_classes, size=pool.size, width=width)
        super().__init__(
            FPN(in_channels, channels=channels, extra="pool"),
            RPN(channels, rpn),
            [RegionStage(head, pool, box)],
            selection=selection,
        )
