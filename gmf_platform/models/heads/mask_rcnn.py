"""Mask R-CNN (He et al., arXiv 1703.06870) on a feature pyramid."""

from collections.abc import Sequence

from gmf_platform.models.heads.detection.masks import MaskHead
from gmf_platform.models.heads.detection.matching import Matcher
from gmf_platform.models.heads.detection.pooling import RoIAlign
from gmf_platform.models.heads.detection.regions import BoxHead, BoxSettings, RegionStage
from gmf_platform.models.heads.detection.rpn import RPN, RPNSettings
from gmf_platform.models.heads.detection.selection import Selection
from gmf_platform.models.heads.detection.two_stage import TwoStageHead
from gmf_platform.models.necks.fpn import FPN
from gmf_platform.ranges import NonNegativeInt, PositiveInt

__all__ = ["MaskRCNN"]

# mmdetection, configs/_base_/models/mask-rcnn_r50_fpn.py, as all defaults below; Swin's and PVT's
# copies of it are the same.
RPN_SETTINGS = RPNSettings()
BOX_SETTINGS = BoxSettings(matcher=Matcher(positive=0.5, negative=0.5, low_quality=0.5))
SELECTION = Selection()


class MaskRCNN(TwoStageHead):
    """Boxes as in `FasterRCNN`, and a mask of 28 x 28 in each.

    Args:
        in_channels: Channels of the backbone's maps, strides 4 to 32.
        num_classes: Number of classes K.
        channels: Channels of the pyramid and of the mask branch.
        width: Of the two linear layers of the box branch.
        rpn: Settings of the proposals.
        box: Settings of the boxes.
        sampling_ratio: See `RoIAlign`.
        aligned: See `RoIAlign`.
        binary_mask_targets: See `MaskHead`.
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
        binary_mask_targets: bool = True,
        selection: Selection = SELECTION,
    ) -> None:
        pool = RoIAlign(7, sampling_ratio=sampling_ratio, aligned=aligned)
        mask_pool = RoIAlign(14, sampling_ratio=sampling_ratio, aligned=aligned)
        head = BoxHead(channels, num_classes, size=pool.size, width=width)
        mask_head = MaskHead(
            channels, num_classes, pool=mask_pool, binary_targets=binary_mask_targets
        )
        super().__init__(
            FPN(in_channels, channels=channels, extra="pool"),
            RPN(channels, rpn),
            [RegionStage(head, pool, box)],
            mask_heads=[mask_head],
            selection=selection,
        )
