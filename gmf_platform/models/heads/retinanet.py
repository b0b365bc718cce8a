"""RetinaNet (Lin et al., arXiv 1708.02002): boxes from every cell of a feature pyramid."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmf_platform.models.heads.detection.anchors import Anchors, by_anchor
from gmf_platform.models.heads.detection.boxes import BoxCoder, clip_boxes
from gmf_platform.models.heads.detection.losses import LossSum, focal_loss, means
from gmf_platform.models.heads.detection.matching import Matcher, match_anchors
from gmf_platform.models.heads.detection.selection import Detections, Selection
from gmf_platform.models.necks.fpn import FPN
from gmf_platform.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt

__all__ = ["RetinaNet"]

# mmdetection, configs/_base_/models/retinanet_r50_fpn.py (and PVT's copy of it) has all of these,
# and all defaults below that name no other source.
ANCHORS = Anchors(strides=(8, 16, 32, 64, 128), scales=(4.0, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3)))
MATCHER = Matcher(positive=0.5, negative=0.4, low_quality=0.0)
SELECTION = Selection(min_score=0.05, max_overlap=0.5, number=100)

# Probability of each class that an untrained network gives each box; section 4.1 of the paper.
PRIOR = 0.01


class RetinaNet(nn.Module):
    """Feature pyramid P3 to P7 and two towers of convolutions, shared by its maps.

    Args:
        in_channels: Channels of the backbone's maps, strides 4 to 32; the first is not used.
        num_classes: Number of classes K.
        channels: Channels of the pyramid and of the towers.
        num_convs: 3x3 convolutions of a tower before the last one.
        anchors: Boxes around each cell.
        matcher: Which anchors learn which truth.
        alpha: Weight of a present class in the focal loss; below 0: no balance.
        gamma: Exponent of the focal loss.
        beta: Where the smooth L1 loss of the box deltas turns from square to straight; 0: L1.
        normalizer: What losses are divided by: the number of positive anchors of the batch, or
            that of each ``"image"``, with the mean over images (torchvision).
        candidates: Boxes of a level and an image that are looked at for detections.
        selection: Which of them become detections.
        relu_in_pyramid: ReLU between the convolutions that make P6 and P7 (torchvision).

    Raises:
        UserError: The anchors' strides are not those of the pyramid's maps.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        channels: PositiveInt = 256,
        num_convs: NonNegativeInt = 4,
        anchors: Anchors = ANCHORS,
        matcher: Matcher = MATCHER,
        alpha: float = 0.25,
        gamma: NonNegativeFloat = 2.0,
        beta: NonNegativeFloat = 0.0,
        normalizer: Literal["batch", "image"] = "batch",
        candidates: PositiveInt = 1000,
        selection: Selection = SELECTION,
        relu_in_pyramid: bool = False,
    ) -> None:
        super().__init__()
        anchors.check_strides(ANCHORS.strides)
        self.num_classes = num_classes
        self.anchors, self.matcher, self.coder = anchors, matcher, BoxCoder()
        self.alpha, self.gamma, self.beta = alpha, gamma, beta
        self.normalizer = normalizer
        self.candidates, self.selection = candidates, selection
        self.neck = FPN(
            in_channels[1:], channels=channels, extra="convs", relu_between=relu_in_pyramid
        )
        self.class_tower = _tower(channels, anchors.per_cell * num_classes, num_convs)
        self.box_tower = _tower(channels, anchors.per_cell * 4, num_convs)
        nn.init.constant_(self.class_tower[-1].bias, -math.log(1 / PRIOR - 1))  # type: ignore[arg-type]

    def forward(
        self,
        features: Sequence[Tensor],
        sizes: Tensor,
        targets: Sequence[Mapping[str, Any]] | None = None,
    ) -> dict[str, Tensor] | list[Detections]:
        """Losses in training with targets, else detections; see `Detector`.

        Args:
            features: The backbone's maps (B, C_i, H_i, W_i) of strides 4, 8, 16, 32.
            sizes: (B, 2) heights and widths of the images without padding.
            targets: Truth of each image; ``boxes`` and ``labels`` are used.
        """
        maps = self.neck(features[1:])
        anchors = self.anchors(maps)
        logits = [by_anchor(self.class_tower(x), self.num_classes) for x in maps]
        deltas = [by_anchor(self.box_tower(x), 4) for x in maps]
        if self.training and targets is not None:
            whole = torch.cat(anchors), torch.cat(logits, dim=1), torch.cat(deltas, dim=1)
            return means(self._losses(*whole, sizes, targets))
        return [
            self._detections(anchors, [x[i] for x in logits], [x[i] for x in deltas], size)
            for i, size in enumerate(sizes)
        ]

    def _losses(
        self,
        anchors: Tensor,
        logits: Tensor,
        deltas: Tensor,
        sizes: Tensor,
        targets: Sequence[Mapping[str, Any]],
    ) -> dict[str, LossSum]:
        """Losses of anchors (A, 4), logits (B, A, K) and deltas (B, A, 4)."""
        labels, wanted = [], []
        for target, size in zip(targets, sizes, strict=True):
            matches = match_anchors(self.matcher, anchors, target["boxes"], size)
            positive = (matches >= 0).nonzero()[:, 0]
            truth = matches[positive]
            labels.append(matches.index_copy(0, positive, target["labels"][truth]))
            wanted.append(self.coder.encode(anchors[positive], target["boxes"][truth]))

        of_anchor = torch.stack(labels)
        images, boxes = (of_anchor >= 0).nonzero(as_tuple=True)
        errors = F.smooth_l1_loss(
            deltas[images, boxes], torch.cat(wanted), reduction="none", beta=self.beta
        )
        by_image = {
            "loss_class": focal_loss(logits, of_anchor, alpha=self.alpha, gamma=self.gamma),
            "loss_box": errors.new_zeros(len(targets)).index_add(0, images, errors.sum(1)),
        }
        positives = (of_anchor >= 0).sum(1)
        return {name: self._normalized(sums, positives) for name, sums in by_image.items()}

    def _normalized(self, sums: Tensor, positives: Tensor) -> LossSum:
        """Losses (B,) of images with so many positive anchors (B,)."""
        if self.normalizer == "image":
            return LossSum.of((sums / positives.clamp(min=1)).sum(), len(sums))
        return LossSum(sums.sum(), positives.sum())

    def _detections(
        self,
        anchors: Sequence[Tensor],
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        size: Tensor,
    ) -> Detections:
        """Detections of an image of height and width ``size`` from what its levels say."""
        levels = zip(anchors, logits, deltas, strict=True)
        boxes, scores, labels = zip(*(self._candidates(*level) for level in levels), strict=True)
        return self.selection(
            clip_boxes(torch.cat(boxes), size), torch.cat(scores), torch.cat(labels)
        )

    def _candidates(
        self, anchors: Tensor, logits: Tensor, deltas: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and labels of the best classes of anchors of one level."""
        scores = logits.sigmoid().flatten()
        above = (scores > self.selection.min_score).nonzero()[:, 0]
        best, order = scores[above].topk(min(self.candidates, len(above)))
        anchor, label = above[order] // self.num_classes, above[order] % self.num_classes
        return self.coder.decode(anchors[anchor], deltas[anchor]), best, label


def _tower(channels: int, outputs: int, num_convs: int) -> nn.Sequential:
    """3x3 convolutions with ReLU, then one to ``outputs``; weights start normal, of std 0.01."""
    layers: list[nn.Module] = []
    for _ in range(num_convs):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True)]
    tower = nn.Sequential(*layers, nn.Conv2d(channels, outputs, 3, padding=1))
    for layer in tower:
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return tower
