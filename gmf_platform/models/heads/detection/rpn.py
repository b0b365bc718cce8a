"""Region proposal network (Ren et al., Faster R-CNN, arXiv 1506.01497)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmf_platform.models.heads.detection.anchors import Anchors, by_anchor
from gmf_platform.models.heads.detection.boxes import BoxCoder, clip_boxes
from gmf_platform.models.heads.detection.losses import LossSum
from gmf_platform.models.heads.detection.matching import Matcher, Sampler, match_anchors
from gmf_platform.models.heads.detection.selection import suppress
from gmf_platform.ranges import NonNegativeFloat, PositiveInt, UnitInterval

__all__ = ["RPN", "RPNSettings"]

# Of all recipes; mmdetection, configs/_base_/models/mask-rcnn_r50_fpn.py.
ANCHORS = Anchors(strides=(4, 8, 16, 32, 64), scales=(8.0,))
MATCHER = Matcher(positive=0.7, negative=0.3, low_quality=0.3)
SAMPLER = Sampler(number=256, positive_fraction=0.5)


@dataclass(frozen=True)
class RPNSettings:
    """Settings of proposals; the defaults are mmdetection's for Mask R-CNN.

    Args:
        anchors: Boxes around each cell.
        matcher: Which anchors learn which truth.
        sampler: Which of them are learnt from.
        beta: Where the smooth L1 loss turns from square to straight; 0: L1.
        allowed_border: Pixels that an anchor to learn from may reach beyond the image; None: any.
        candidates_train: Best boxes of each level that go into the suppression, in training.
        candidates_test: Likewise in evaluation.
        max_overlap: With a better box of the same level, that a proposal may have.
        proposals_train: Best boxes of all levels together that are proposed, in training.
        proposals_test: Likewise in evaluation.
    """

    anchors: Anchors = ANCHORS
    matcher: Matcher = MATCHER
    sampler: Sampler = SAMPLER
    beta: NonNegativeFloat = 0.0
    allowed_border: float | None = None
    candidates_train: PositiveInt = 2000
    candidates_test: PositiveInt = 1000
    max_overlap: UnitInterval = 0.7
    proposals_train: PositiveInt = 1000
    proposals_test: PositiveInt = 1000


class RPN(nn.Module):
    """Proposes boxes that may hold an object, of any class.

    Args:
        channels: Channels of the pyramid's maps.
        settings: See `RPNSettings`.

    Raises:
        UserError: The anchors' strides are not those of the pyramid's maps.
    """

    def __init__(self, channels: int, settings: RPNSettings) -> None:
        super().__init__()
        settings.anchors.check_strides(ANCHORS.strides)
        self.settings, self.coder = settings, BoxCoder()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, settings.anchors.per_cell, 1)
        self.deltas = nn.Conv2d(channels, settings.anchors.per_cell * 4, 1)
        for conv in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(
        self,
        maps: Sequence[Tensor],
        sizes: Tensor,
        targets: Sequence[Mapping[str, Any]] | None = None,
        generators: Sequence[torch.Generator] = (),
    ) -> tuple[list[Tensor], dict[str, LossSum]]:
        """Propose boxes.

        Args:
            maps: Of the pyramid, (B, C, H_i, W_i).
            sizes: (B, 2) heights and widths of the images without padding.
            targets: Truth of each image, of which ``boxes`` are used; None: no losses.
            generators: For each image, what its sample is drawn with.

        Returns:
            For each image boxes (N, 4), at least one, best first; losses.
        """
        anchors = self.settings.anchors(maps)
        hidden = [F.relu(self.conv(x)) for x in maps]
        scores = [by_anchor(self.objectness(x), 1)[..., 0] for x in hidden]
        deltas = [by_anchor(self.deltas(x), 4) for x in hidden]
        proposals = self._proposals(anchors, scores, deltas, sizes)
        if targets is None:
            return proposals, {}
        whole = torch.cat(anchors), torch.cat(scores, dim=1), torch.cat(deltas, dim=1)
        return proposals, self._losses(*whole, sizes, targets, generators)

    @torch.no_grad()
    def _proposals(
        self,
        anchors: Sequence[Tensor],
        scores: Sequence[Tensor],
        deltas: Sequence[Tensor],
        sizes: Tensor,
    ) -> list[Tensor]:
        """Proposals from anchors (A_i, 4), scores (B, A_i) and deltas (B, A_i, 4) of levels."""
        candidates, values, levels = [], [], []
        number = self._by_mode(self.settings.candidates_train, self.settings.candidates_test)
        for level, (boxes, score, delta) in enumerate(zip(anchors, scores, deltas, strict=True)):
            value, best = score.topk(min(number, len(boxes)), dim=1)
            best_delta = delta.take_along_dim(best[..., None], dim=1)
            candidates.append(self.coder.decode(boxes[best], best_delta))
            values.append(value)
            levels.append(torch.full_like(best[0], level))
        clipped = clip_boxes(torch.cat(candidates, dim=1), sizes[:, None])
        of_images = zip(clipped, torch.cat(values, dim=1), sizes, strict=True)
        groups = torch.cat(levels)
        return [self._best(boxes, value, groups, size) for boxes, value, size in of_images]

    def _best(self, boxes: Tensor, scores: Tensor, groups: Tensor, size: Tensor) -> Tensor:
        number = self._by_mode(self.settings.proposals_train, self.settings.proposals_test)
        kept = suppress(boxes, scores, groups, max_overlap=self.settings.max_overlap, number=number)
        # The whole image stands in, so that what follows never computes of nothing.
        whole = torch.cat([torch.zeros_like(size), size.flip(0)]).to(boxes.dtype)
        return boxes[kept] if len(kept) else whole[None]

    def _by_mode(self, train: int, test: int) -> int:
        return train if self.training else test

    def _losses(
        self,
        anchors: Tensor,
        scores: Tensor,
        deltas: Tensor,
        sizes: Tensor,
        targets: Sequence[Mapping[str, Any]],
        generators: Sequence[torch.Generator],
    ) -> dict[str, LossSum]:
        """Losses of anchors (A, 4), scores (B, A) and deltas (B, A, 4); both per drawn anchor."""
        settings, drawn = self.settings, 0
        of_class, of_box = [], []
        for image, (target, size) in enumerate(zip(targets, sizes, strict=True)):
            truths = target["boxes"]
            matches = match_anchors(
                settings.matcher, anchors, truths, size, border=settings.allowed_border
            )
            positive, negative = settings.sampler(matches, generators[image])
            chosen = torch.cat([positive, negative])
            wanted = (matches[chosen] >= 0).to(scores.dtype)
            of_class.append(
                F.binary_cross_entropy_with_logits(scores[image, chosen], wanted, reduction="sum")
            )
            shift = self.coder.encode(anchors[positive], truths[matches[positive]])
            of_box.append(
                F.smooth_l1_loss(
                    deltas[image, positive], shift, reduction="sum", beta=settings.beta
                )
            )
            drawn += len(chosen)
        return {
            "loss_rpn_class": LossSum.of(torch.stack(of_class).sum(), drawn),
            "loss_rpn_box": LossSum.of(torch.stack(of_box).sum(), drawn),
        }
