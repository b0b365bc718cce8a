"""Cascade Mask R-CNN (Cai and Vasconcelos, arXiv 1906.09756) on a feature pyramid."""

from collections.abc import Sequence

from gmf_platform.errors import UserError
from gmf_platform.models.heads.detection.masks import MaskHead
from gmf_platform.models.heads.detection.matching import Matcher
from gmf_platform.models.heads.detection.pooling import RoIAlign
from gmf_platform.models.heads.detection.regions import BoxHead, BoxSettings, RegionStage
from gmf_platform.models.heads.detection.rpn import RPN, RPNSettings
from gmf_platform.models.heads.detection.selection import Selection
from gmf_platform.models.heads.detection.two_stage import TwoStageHead
from gmf_platform.models.necks.fpn import FPN
from gmf_platform.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt

__all__ = ["CascadeMaskRCNN"]

# Swin-Transformer-Object-Detection, configs/_base_/models/cascade_mask_rcnn_swin_fpn.py with the
# box heads of its configs/swin/cascade_mask_rcnn_swin_*_giou_4conv1f_adamw_*, as all defaults below.
RPN_SETTINGS = RPNSettings(beta=1 / 9, allowed_border=0.0, proposals_train=2000)
STAGES = tuple(
    BoxSettings(
        matcher=Matcher(positive=overlap, negative=overlap),
        stds=stds,
        loss="giou",
        loss_weight=10.0,
    )
    for overlap, stds in (
        (0.5, (0.1, 0.1, 0.2, 0.2)),
        (0.6, (0.05, 0.05, 0.1, 0.1)),
        (0.7, (0.033, 0.033, 0.067, 0.067)),
    )
)
STAGE_WEIGHTS = (1.0, 0.5, 0.25)
SELECTION = Selection()


class CascadeMaskRCNN(TwoStageHead):
    """Several looks at each region, each at better boxes and stricter about them.

    The head of each stage has four convolutions with batch norm and one linear layer (4conv1fc).

    Args:
        in_channels: Channels of the backbone's maps, strides 4 to 32.
        num_classes: Number of classes K.
        masks: With a mask branch for each stage; otherwise this is Cascade R-CNN.
        channels: Channels of the pyramid and of the branches.
        width: Of the linear layer of the box branches.
        rpn: Settings of the proposals.
        stages: Settings of the boxes of each stage.
        stage_weights: Of the losses of each stage.
        sampling_ratio: See `RoIAlign`.
        aligned: See `RoIAlign`.
        binary_mask_targets: See `MaskHead`.
        selection: Which boxes become detections.

    Raises:
        UserError: there are more or fewer weights than stages.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        masks: bool = True,
        channels: PositiveInt = 256,
        width: PositiveInt = 1024,
        rpn: RPNSettings = RPN_SETTINGS,
        stages: Sequence[BoxSettings] = STAGES,
        stage_weights: Sequence[NonNegativeFloat] = STAGE_WEIGHTS,
        sampling_ratio: NonNegativeInt = 0,
        aligned: bool = True,
        binary_mask_targets: bool = True,
        selection: Selection = SELECTION,
    ) -> None:
        if not stages or len(stages) != len(stage_weights):
            raise UserError(
                f"model.head: {len(stage_weights)} stage_weights for {len(stages)} stages; give "
                "one weight for each of at least one stage"
            )
        pool = RoIAlign(7, sampling_ratio=sampling_ratio, aligned=aligned)
        mask_pool = RoIAlign(14, sampling_ratio=sampling_ratio, aligned=aligned)

        def box_head() -> BoxHead:
            return BoxHead(
                channels, num_classes, size=pool.size, num_convs=4, num_linears=1, width=width
            )

        def mask_head() -> MaskHead:
            return MaskHead(
                channels, num_classes, pool=mask_pool, binary_targets=binary_mask_targets
            )

        super().__init__(
            FPN(in_channels, channels=channels, extra="pool"),
            RPN(channels, rpn),
            [RegionStage(box_head(), pool, settings) for settings in stages],
            mask_heads=[mask_head() for _ in stages] if masks else [],
            stage_weights=stage_weights,
            selection=selection,
        )
