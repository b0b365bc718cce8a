"""How a detector is applied to an image: once, or at several scales and mirrored."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gmf_platform.errors import UserError
from gmf_platform.evaluation.detection import (
    ImageDetections,
    at_original_size,
    encoded,
    scaled_to_original,
)
from gmf_platform.evaluation.inference import flipped_inside
from gmf_platform.evaluation.segmentation import Size
from gmf_platform.models.detector import Detector
from gmf_platform.models.heads.detection import Detections
from gmf_platform.models.heads.detection.selection import suppress
from gmf_platform.ranges import PositiveInt, UnitInterval

__all__ = ["DetectionInference", "DetectionTestTimeAugmentation"]


class DetectionInference:
    """From an evaluation batch to objects on the original images: each image once.

    Other strategies derive from it.
    """

    def detections(self, model: Detector, batch: Mapping[str, Any]) -> list[ImageDetections]:
        """Predict.

        Args:
            model: in evaluation mode, gradients switched off.
            batch: ``images``, ``sizes`` and ``original_sizes`` (docs/architecture.md says what
                they are); with ``data.eval_scales``, ``scaled``: a list of ``images`` and
                ``sizes`` of the same images resized to each of them.

        Returns:
            Of each image, sorted by falling score.

        Raises:
            UserError: the data comes at several scales, which nothing here would use.
        """
        if "scaled" in batch:
            raise UserError(
                "data.eval_scales gives each image at several scales, but model.inference takes "
                "one: set model.inference to "
                "gmf_platform.evaluation.DetectionTestTimeAugmentation, or data.eval_scales to null"
            )
        found = model(batch["images"], batch["sizes"])
        sizes, original_sizes = _pairs(batch["sizes"]), _pairs(batch["original_sizes"])
        return [
            at_original_size(one, size=size, original_size=original_size)
            for one, size, original_size in zip(found, sizes, original_sizes, strict=True)
        ]


class DetectionTestTimeAugmentation(DetectionInference):
    """The best of what is found at several scales and in the mirror.

    The scales are those of ``data.eval_scales``, each resized from the original file; without
    them there is the one scale of the data. The boxes of all versions are brought to the original
    image and go through one non-maximum suppression by class, as in detectron2's
    ``GeneralizedRCNNWithTTA`` and mmdetection's ``DetTTAModel``. A box keeps the mask of its own
    version, mirrored back if need be; detectron2 would run the mask head again on the merged boxes
    of each version and average, which takes that much longer and a head of its kind.

    Args:
        flip: take each version mirrored, left to right, as well.
        max_overlap: IoU with a better box of its class, that a box may have.
        number: of boxes kept of an image at most; COCO counts 100.

    Raises:
        UserError: a number is out of its range.
    """

    def __init__(
        self, *, flip: bool = True, max_overlap: UnitInterval = 0.5, number: PositiveInt = 100
    ) -> None:
        if not 0 < max_overlap <= 1:
            raise UserError(
                f"model.inference: max_overlap must be over 0 and at most 1, not {max_overlap}"
            )
        if number < 1:
            raise UserError(f"model.inference: number must be at least 1, not {number}")
        self.flip, self.max_overlap, self.number = flip, max_overlap, number

    def detections(self, model: Detector, batch: Mapping[str, Any]) -> list[ImageDetections]:
        """Predict; see the base class."""
        sizes = _pairs(batch["original_sizes"])
        by_image = zip(*self._versions(model, batch, sizes), strict=True)
        return [self._merged(parts, size) for parts, size in zip(by_image, sizes, strict=True)]

    def _versions(
        self, model: Detector, batch: Mapping[str, Any], original_sizes: Sequence[Size]
    ) -> Iterator[list[Detections]]:
        """What is found on each original image, for one version after the other."""
        for version in batch.get("scaled", [batch]):
            images, sizes = version["images"], version["sizes"]
            pairs = list(zip(_pairs(sizes), original_sizes, strict=True))
            yield _on_original(model(images, sizes), pairs)
            if self.flip:
                found = _on_original(model(flipped_inside(images, sizes), sizes), pairs)
                yield [_mirrored(x, size) for x, size in zip(found, original_sizes, strict=True)]

    def _merged(self, parts: Sequence[Detections], size: Size) -> ImageDetections:
        columns = zip(*(part[:3] for part in parts), strict=True)
        boxes, scores, labels = (torch.cat(column) for column in columns)
        masks = [part.masks for part in parts if part.masks is not None]
        kept = suppress(boxes, scores, labels, max_overlap=self.max_overlap, number=self.number)
        best = Detections(
            boxes[kept], scores[kept], labels[kept], torch.cat(masks)[kept] if masks else None
        )
        return encoded(best, size=size)


def _on_original(
    found: Sequence[Detections], sizes: Sequence[tuple[Size, Size]]
) -> list[Detections]:
    return [
        scaled_to_original(one, size=size, original_size=original_size)
        for one, (size, original_size) in zip(found, sizes, strict=True)
    ]


def _mirrored(found: Detections, size: Size) -> Detections:
    """Boxes and masks of a mirrored image, back on the image of a size."""
    left, top, right, bottom = found.boxes.unbind(1)
    boxes = torch.stack([size[1] - right, top, size[1] - left, bottom], dim=1)
    masks = None if found.masks is None else found.masks.flip(-1)
    return found._replace(boxes=boxes, masks=masks)


def _pairs(sizes: Tensor) -> list[Size]:
    return [(height, width) for height, width in sizes.tolist()]
