"""Detectors that propose regions and then look at each of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gmf_platform.models.heads.detection.losses import LossSum, means
from gmf_platform.models.heads.detection.masks import MaskHead
from gmf_platform.models.heads.detection.matching import region_generator
from gmf_platform.models.heads.detection.regions import Predicted, RegionStage
from gmf_platform.models.heads.detection.rpn import RPN
from gmf_platform.models.heads.detection.selection import Detections, Selection

__all__ = ["TwoStageHead"]


class TwoStageHead(nn.Module):
    """Pyramid, proposals, and one or more stages that look at regions, each at better ones.

    One stage is Faster or Mask R-CNN, more are Cascade R-CNN (Cai and Vasconcelos, arXiv
    1712.00726) as mmdetection's CascadeRoIHead computes it.

    Args:
        neck: The backbone's maps -> those of the pyramid.
        rpn: Proposes boxes.
        stages: In their order.
        mask_heads: One for each stage, or none.
        stage_weights: Of the losses of each stage.
        selection: Which boxes become detections.
    """

    # Module lists, typed by what they hold.
    stages: Sequence[RegionStage]
    mask_heads: Sequence[MaskHead]

    def __init__(
        self,
        neck: nn.Module,
        rpn: RPN,
        stages: Sequence[RegionStage],
        *,
        mask_heads: Sequence[MaskHead] = (),
        stage_weights: Sequence[float] = (1.0,),
        selection: Selection,
    ) -> None:
        super().__init__()
        self.neck, self.rpn = neck, rpn
        self.stages = nn.ModuleList(stages)  # type: ignore[assignment]
        self.mask_heads = nn.ModuleList(mask_heads)  # type: ignore[assignment]
        self.stage_weights, self.selection = tuple(stage_weights), selection

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
            targets: Truth of each image.
        """
        maps = self.neck(features)
        if self.training and targets is not None:
            return means(self._losses(maps, sizes, targets))
        detections = self._detections(maps, sizes)
        return self._with_masks(maps, detections) if self.mask_heads else detections

    def _losses(
        self, maps: Sequence[Tensor], sizes: Tensor, targets: Sequence[Mapping[str, Any]]
    ) -> dict[str, LossSum]:
        """Losses of all parts; those of stages are numbered from 1 if there are several."""
        generators = [region_generator(target) for target in targets]
        boxes, sums = self.rpn(maps, sizes, targets, generators)
        for number, (stage, weight) in enumerate(zip(self.stages, self.stage_weights, strict=True)):
            images = zip(boxes, targets, generators, strict=True)
            regions = [stage.sample(*image) for image in images]
            drawn = [r.boxes for r in regions]
            predicted = stage(maps, drawn)
            parts = stage.losses(predicted, regions, targets)
            if self.mask_heads:
                parts["mask"] = self.mask_heads[number].losses(maps, regions, targets)
            suffix = f"_{number + 1}" if len(self.stages) > 1 else ""
            for name, part in parts.items():
                sums[f"loss_{name}{suffix}"] = part.weighted(weight)
            if number + 1 < len(self.stages):
                labels = torch.cat([r.labels for r in regions])
                moved = stage.refined(predicted, drawn, sizes, labels)
                # The truths among them are no proposals; the next stage adds them again.
                boxes = [box[~r.given] for box, r in zip(moved, regions, strict=True)]
        return sums

    def _detections(self, maps: Sequence[Tensor], sizes: Tensor) -> list[Detections]:
        """Detections without masks, by the mean of the stages' logits and the last one's boxes."""
        boxes, _ = self.rpn(maps, sizes)
        *early, last = self.stages
        all_logits = []
        for stage in early:
            predicted: Predicted = stage(maps, boxes)
            all_logits.append(predicted.logits)
            boxes = stage.refined(predicted, boxes, sizes)
        predicted = last(maps, boxes)
        all_logits.append(predicted.logits)

        numbers = [len(x) for x in boxes]
        probabilities = torch.stack(all_logits).mean(0).softmax(1)[:, :-1]
        parts = probabilities.split(numbers), predicted.deltas.split(numbers), boxes, sizes
        return [last.detect(*of_image, self.selection) for of_image in zip(*parts, strict=True)]

    def _with_masks(
        self, maps: Sequence[Tensor], detections: Sequence[Detections]
    ) -> list[Detections]:
        """Add masks, the mean of the stages' probabilities."""
        boxes = [found.boxes for found in detections]
        labels = torch.cat([found.labels for found in detections])
        masks = torch.stack([head(maps, boxes, labels).sigmoid() for head in self.mask_heads])
        parts = masks.mean(0).float().split([len(x) for x in boxes])
        return [found._replace(masks=part) for found, part in zip(detections, parts, strict=True)]
