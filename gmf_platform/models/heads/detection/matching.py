"""Which truth each box is to learn, and which boxes are learnt from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

from gmf_platform.errors import UserError
from gmf_platform.models.heads.detection.anchors import anchors_inside
from gmf_platform.ranges import PositiveInt, UnitInterval

__all__ = ["IGNORED", "NEGATIVE", "Matcher", "Sampler", "match_anchors", "region_generator"]

NEGATIVE, IGNORED = -1, -2
"""In place of a truth's index: background, and neither background nor object."""

# Overlaps computed at once: 4M of them need about 100 MB while they are computed, where all those
# of 270,000 anchors with 100 truths would need 1 GB.
PAIRS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Matcher:
    """Matches boxes to truths by their overlap (intersection over union).

    mmdetection's MaxIoUAssigner (whose ``pos_iou_thr``, ``neg_iou_thr``, ``min_pos_iou`` are the
    first three settings) with ``ignore_iof_thr=-1``, as all recipes have it: crowd regions play
    no part. Other than there, a truth that overlaps no box at all matches none.

    Args:
        positive: a box that overlaps a truth by this or more learns the one it overlaps most.
        negative: a box that overlaps all by less is background; between the two it is ignored.
        low_quality: each truth also takes the boxes, equals included, that overlap it more than
            all others do, if by this or more; None: it does not.
        reassign: a box so taken learns the truth that took it (mmdetection); otherwise the one
            that it overlaps most (torchvision).

    Raises:
        UserError: a box could be positive and background at once.
    """

    positive: UnitInterval
    negative: UnitInterval
    low_quality: UnitInterval | None = None
    reassign: bool = True

    def __post_init__(self) -> None:
        if self.positive < self.negative:
            raise UserError(
                f"matcher.positive: {self.positive} is below matcher.negative, {self.negative}: a "
                "box of an overlap between them would be both"
            )

    @torch.no_grad()
    def __call__(self, boxes: Tensor, truths: Tensor) -> Tensor:
        """Index of the truth for each box, `NEGATIVE` or `IGNORED`, int64 (A,).

        Args:
            boxes: (A, 4).
            truths: (N, 4); may be none.
        """
        if not len(truths) or not len(boxes):
            return torch.full((len(boxes),), NEGATIVE, device=boxes.device)
        chunks = boxes.split(max(1, PAIRS_AT_ONCE // len(truths)))
        overlaps = (box_iou(truths, chunk) for chunk in chunks)
        best = [(*overlap.max(0), overlap.amax(1)) for overlap in overlaps]
        of_boxes, indices, of_truths = zip(*best, strict=True)
        overlap, nearest = torch.cat(of_boxes), torch.cat(indices)

        matches = torch.where(overlap < self.negative, NEGATIVE, IGNORED)
        matches = torch.where(overlap >= self.positive, nearest, matches)
        if self.low_quality is None:
            return matches
        reached = torch.stack(of_truths).amax(0)
        never = (reached < self.low_quality) | (reached == 0)
        takers = _takers(chunks, truths, reached.masked_fill(never, 2.0))
        return torch.where(takers >= 0, takers if self.reassign else nearest, matches)


def _takers(chunks: Sequence[Tensor], truths: Tensor, overlaps: Tensor) -> Tensor:
    """The last truth that has just its overlap (N,) with each of the boxes; -1 for none."""
    numbers = torch.arange(len(truths), device=truths.device)[:, None]
    takes = (box_iou(truths, chunk) == overlaps[:, None] for chunk in chunks)
    return torch.cat([torch.where(take, numbers, -1).amax(0) for take in takes])


@dataclass(frozen=True)
class Sampler:
    """Draws the boxes of an image that are learnt from; mmdetection's RandomSampler.

    Args:
        number: drawn per image at most.
        positive_fraction: of them are positive at most; negatives take the place of the others.
    """

    number: PositiveInt
    positive_fraction: UnitInterval

    def __call__(self, matches: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Indices of the drawn positive and negative boxes.

        Args:
            matches: (A,), as `Matcher` gives them.
            generator: on the CPU, so that every device draws the same.
        """
        most = int(self.number * self.positive_fraction)
        positive = _draw(matches >= 0, most, generator)
        return positive, _draw(matches == NEGATIVE, self.number - len(positive), generator)


def _draw(candidates: Tensor, at_most: int, generator: torch.Generator) -> Tensor:
    indices = candidates.nonzero()[:, 0]
    if len(indices) <= at_most:
        return indices
    chosen = torch.randperm(len(indices), generator=generator)[:at_most]
    return indices[chosen.to(indices.device)]


def match_anchors(
    matcher: Matcher,
    anchors: Tensor,
    truths: Tensor,
    size: Tensor,
    *,
    border: float | None = None,
) -> Tensor:
    """Match the anchors (A, 4) of an image; those outside are `IGNORED`, int64 (A,).

    Args:
        matcher: of those inside.
        anchors: of all levels.
        truths: (N, 4).
        size: (2,) height and width of the image.
        border: see `anchors_inside`.
    """
    inside = anchors_inside(anchors, size, border=border).nonzero()[:, 0]
    matches = torch.full((len(anchors),), IGNORED, device=anchors.device)
    return matches.index_copy(0, inside, matcher(anchors[inside], truths))


def region_generator(target: Mapping[str, Any]) -> torch.Generator:
    """What draws the regions of one image, the same whatever its batch mates and process are."""
    return torch.Generator().manual_seed(int(target["seed"]))
