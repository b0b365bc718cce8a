"""The mask branch (He et al., Mask R-CNN, arXiv 1703.06870)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from gmf_platform.errors import UserError
from gmf_platform.models.heads.detection.boxes import full_precision
from gmf_platform.models.heads.detection.losses import LossSum
from gmf_platform.models.heads.detection.pooling import RoIAlign
from gmf_platform.models.heads.detection.regions import Regions

__all__ = ["MaskHead", "mask_targets"]

# Masks that are turned to floats at once: 275 MB at 800 x 1344.
MASKS_AT_ONCE = 64


class MaskHead(nn.Module):
    """Four convolutions, a doubling, and a mask of each class; mmdetection's FCNMaskHead.

    Args:
        channels: Channels of the pyramid's maps, and inside.
        num_classes: Number of classes K.
        pool: Pools the boxes; a mask has twice its size.
        binary_targets: What is learnt is 0 or 1, as in mmdetection; otherwise the share of the
            object in each cell, as in torchvision.
    """

    def __init__(
        self, channels: int, num_classes: int, *, pool: RoIAlign, binary_targets: bool = True
    ) -> None:
        super().__init__()
        self.pool, self.binary_targets = pool, binary_targets
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(4))
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.logits = nn.Conv2d(channels, num_classes, 1)
        for conv in (*self.convs, self.upsample, self.logits):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(conv.bias)

    def forward(self, maps: Sequence[Tensor], boxes: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Logits (R, s, s), in float32, of the masks of boxes (N_i, 4) of image i, labels (R,)."""
        x = self.pool(maps, boxes)
        for conv in self.convs:
            x = F.relu(conv(x))
        x = self.logits(F.relu(self.upsample(x)))
        return full_precision(x[torch.arange(len(x), device=x.device), labels])

    def losses(
        self,
        maps: Sequence[Tensor],
        regions: Sequence[Regions],
        targets: Sequence[Mapping[str, Any]],
    ) -> LossSum:
        """Binary cross-entropy of the positive regions' masks, per region.

        Raises:
            UserError: the targets hold no masks.
        """
        if any("masks" not in target for target in targets):
            raise UserError(
                "model.head predicts masks, but the data gives none: set data.with_masks to true, "
                "or use a head without masks, such as gmf_platform.models.heads.FasterRCNN"
            )
        matched = list(zip(targets, regions, strict=True))
        labels = torch.cat([target["labels"][r.truths] for target, r in matched])
        logits = self(maps, [r.positive for r in regions], labels)
        wanted = torch.cat([self._wanted(target["masks"], r) for target, r in matched])
        errors = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
        return LossSum.of(errors / (2 * self.pool.size) ** 2, len(labels))

    def _wanted(self, masks: Tensor, regions: Regions) -> Tensor:
        return mask_targets(
            masks,
            regions.positive,
            regions.truths,
            size=2 * self.pool.size,
            aligned=self.pool.aligned,
            binary=self.binary_targets,
        )


def mask_targets(
    masks: Tensor, boxes: Tensor, truths: Tensor, *, size: int, aligned: bool, binary: bool
) -> Tensor:
    """Cut the truth out of boxes, float32 (P, size, size).

    Args:
        masks: uint8 (N, H, W) of 0 and 1, at the size of the batch's images.
        boxes: (P, 4).
        truths: (P,) indices of their masks.
        size: Of what is cut out.
        aligned: See `RoIAlign`.
        binary: Rounded to 0 or 1, half to 1.
    """
    cut = boxes.new_zeros(len(truths), size, size)
    if not len(truths):
        return cut
    for first in range(0, len(masks), MASKS_AT_ONCE):
        some = masks[first : first + MASKS_AT_ONCE, None].to(boxes.dtype)
        own = ((truths >= first) & (truths < first + len(some))).nonzero()[:, 0]
        regions = torch.cat([(truths[own, None] - first).to(boxes.dtype), boxes[own]], dim=1)
        cut[own] = roi_align(some, regions, size, aligned=aligned)[:, 0]
    return (cut >= 0.5).to(boxes.dtype) if binary else cut
