"""The second stage of a detector: what a proposed box holds, and where it ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from gmf_platform.models.heads.blocks import ConvNormAct
from gmf_platform.models.heads.detection.boxes import BoxCoder, clip_boxes, full_precision
from gmf_platform.models.heads.detection.losses import LossSum
from gmf_platform.models.heads.detection.matching import Matcher, Sampler
from gmf_platform.models.heads.detection.pooling import RoIAlign
from gmf_platform.models.heads.detection.selection import Detections, Selection
from gmf_platform.ranges import NonNegativeFloat, PositiveFloat

__all__ = ["BoxHead", "BoxSettings", "Predicted", "RegionStage", "Regions"]

# Of all recipes; mmdetection, configs/_base_/models/faster-rcnn_r50_fpn.py.
MATCHER = Matcher(positive=0.5, negative=0.5)
SAMPLER = Sampler(number=512, positive_fraction=0.25)


@dataclass(frozen=True)
class BoxSettings:
    """Settings of a stage; the defaults are mmdetection's for Faster R-CNN.

    Args:
        matcher: Which proposals learn which truth; all that are not positive are background.
        sampler: Which of them, and of the truths themselves, are learnt from.
        stds: See `BoxCoder`.
        loss: Of boxes: smooth L1 of the deltas, or generalised IoU (Rezatofighi et al., arXiv
            1902.09630) of the boxes that they lead to.
        loss_weight: Of the loss of boxes.
        beta: Where smooth L1 turns from square to straight; 0: L1.
    """

    matcher: Matcher = MATCHER
    sampler: Sampler = SAMPLER
    stds: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat] = (0.1, 0.1, 0.2, 0.2)
    loss: Literal["l1", "giou"] = "l1"
    loss_weight: NonNegativeFloat = 1.0
    beta: NonNegativeFloat = 0.0


class Regions(NamedTuple):
    """Boxes of an image that are learnt from, the P positive ones first.

    Attributes:
        boxes: (R, 4).
        labels: (R,) 0..K-1, K for background.
        truths: (P,) indices of the truths that the positive boxes learn.
        given: (R,) booleans: the box is itself a truth, not a proposal.
    """

    boxes: Tensor
    labels: Tensor
    truths: Tensor
    given: Tensor

    @property
    def positive(self) -> Tensor:
        """The positive boxes (P, 4)."""
        return self.boxes[: len(self.truths)]


class Predicted(NamedTuple):
    """What a stage says of R boxes, in float32.

    Attributes:
        logits: (R, K + 1) of the classes; the last is background.
        deltas: (R, K, 4) of the boxes, for each class.
    """

    logits: Tensor
    deltas: Tensor


class BoxHead(nn.Module):
    """Pooled features to class logits and box deltas; mmdetection's ConvFCBBoxHead.

    Two linear layers make its Shared2FCBBoxHead; four convolutions and one, its 4conv1fc head.

    Args:
        channels: Channels C of the pooled features.
        num_classes: Number of classes K.
        size: Side s of the pooled square in cells.
        num_convs: 3x3 convolutions with batch norm and ReLU.
        num_linears: Linear layers with ReLU behind them.
        width: Of the linear layers.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        size: int = 7,
        num_convs: int = 0,
        num_linears: int = 2,
        width: int = 1024,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.convs = nn.Sequential(*(ConvNormAct(channels, channels, 3) for _ in range(num_convs)))
        inputs = [channels * size**2] + [width] * (num_linears - 1)
        self.linears = nn.ModuleList(nn.Linear(n, width) for n in inputs)
        self.classes = nn.Linear(width, num_classes + 1)
        self.deltas = nn.Linear(width, num_classes * 4)
        for linear in self.linears:
            nn.init.xavier_uniform_(linear.weight)  # type: ignore[arg-type]
        nn.init.normal_(self.classes.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        for linear in (*self.linears, self.classes, self.deltas):
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Predicted:
        """Map (R, C, s, s) to logits (R, K + 1) and deltas (R, K, 4)."""
        x = self.convs(x).flatten(1)
        for linear in self.linears:
            x = F.relu(linear(x))
        logits, deltas = full_precision(self.classes(x)), full_precision(self.deltas(x))
        return Predicted(logits, deltas.view(-1, self.num_classes, 4))


class RegionStage(nn.Module):
    """Looks at boxes, and learns of those that it draws.

    Args:
        head: Of what it pools.
        pool: Pools it.
        settings: See `BoxSettings`.
    """

    def __init__(self, head: BoxHead, pool: RoIAlign, settings: BoxSettings) -> None:
        super().__init__()
        self.head, self.pool, self.settings = head, pool, settings
        self.coder = BoxCoder(settings.stds)

    def forward(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Predicted:
        """Look at boxes (N_i, 4) of image i in maps (B, C, H_j, W_j)."""
        predicted: Predicted = self.head(self.pool(maps, boxes))
        return predicted

    def sample(
        self, proposals: Tensor, target: Mapping[str, Any], generator: torch.Generator
    ) -> Regions:
        """Draw among the proposals (P, 4) of an image, and its truths, what to learn from.

        Proposals are matched; a truth is its own match.
        """
        truths, labels = target["boxes"], target["labels"]
        own = torch.arange(len(truths), device=truths.device)
        matches = torch.cat([own, self.settings.matcher(proposals, truths)])
        positive, negative = self.settings.sampler(matches, generator)
        chosen, matched = torch.cat([positive, negative]), matches[positive]
        background = labels.new_full((len(negative),), self.head.num_classes)
        return Regions(
            boxes=torch.cat([truths, proposals])[chosen],
            labels=torch.cat([labels[matched], background]),
            truths=matched,
            given=chosen < len(truths),
        )

    def losses(
        self,
        predicted: Predicted,
        regions: Sequence[Regions],
        targets: Sequence[Mapping[str, Any]],
    ) -> dict[str, LossSum]:
        """Cross-entropy of the classes and loss of the positive boxes, both per region."""
        labels = torch.cat([r.labels for r in regions])
        of_class = F.cross_entropy(predicted.logits, labels, reduction="sum")

        positive = (labels < self.head.num_classes).nonzero()[:, 0]
        deltas = predicted.deltas[positive, labels[positive]]
        boxes = torch.cat([r.positive for r in regions])
        truths = torch.cat([t["boxes"][r.truths] for r, t in zip(regions, targets, strict=True)])
        of_box = self._box_loss(boxes, deltas, truths) * self.settings.loss_weight
        return {"class": LossSum.of(of_class, len(labels)), "box": LossSum.of(of_box, len(labels))}

    def _box_loss(self, boxes: Tensor, deltas: Tensor, truths: Tensor) -> Tensor:
        if self.settings.loss == "giou":
            reached = self.coder.decode(boxes, deltas)
            total: Tensor = generalized_box_iou_loss(reached, truths, reduction="sum")
            return total
        wanted = self.coder.encode(boxes, truths)
        return F.smooth_l1_loss(deltas, wanted, reduction="sum", beta=self.settings.beta)

    @torch.no_grad()
    def refined(
        self,
        predicted: Predicted,
        boxes: Sequence[Tensor],
        sizes: Tensor,
        labels: Tensor | None = None,
    ) -> list[Tensor]:
        """Move boxes (N_i, 4) of image i to where their class says, inside the image.

        Args:
            predicted: Of the boxes.
            boxes: Of each image.
            sizes: (B, 2) heights and widths of the images.
            labels: (R,) true classes, K for background, which the likeliest class replaces; None:
                the likeliest for all.
        """
        likely = predicted.logits[:, :-1].argmax(1)
        if labels is not None:
            likely = torch.where(labels < self.head.num_classes, labels, likely)
        numbers = torch.arange(len(likely), device=likely.device)
        moved = self.coder.decode(torch.cat(list(boxes)), predicted.deltas[numbers, likely])
        parts = moved.split([len(x) for x in boxes])
        return [clip_boxes(x, size) for x, size in zip(parts, sizes, strict=True)]

    def detect(
        self,
        probabilities: Tensor,
        deltas: Tensor,
        boxes: Tensor,
        size: Tensor,
        selection: Selection,
    ) -> Detections:
        """Detections of an image of height and width ``size``.

        Args:
            probabilities: (N, K) of the classes.
            deltas: (N, K, 4).
            boxes: (N, 4).
            size: (2,).
            selection: Which of the N K boxes become detections.
        """
        box, label = (probabilities > selection.min_score).nonzero(as_tuple=True)
        moved = clip_boxes(self.coder.decode(boxes[box], deltas[box, label]), size)
        return selection(moved, probabilities[box, label], label)
