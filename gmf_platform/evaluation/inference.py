"""How a segmentation network is applied to an image: whole, in windows, at several scales."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gmf_platform.errors import UserError
from gmf_platform.evaluation.segmentation import (
    Size,
    View,
    labels_at_original_size,
    labels_by_mean_probability,
    sampled_loss,
)
from gmf_platform.models.segmenter import Segmenter
from gmf_platform.ranges import PositiveInt

__all__ = ["Inference", "OneScale", "SlidingWindow", "TestTimeAugmentation", "WholeImage"]


class Inference(ABC):
    """From an evaluation batch to labels at original size."""

    @abstractmethod
    def labels(self, model: Segmenter, batch: Mapping[str, Any]) -> list[Tensor]:
        """Predict.

        Args:
            model: in evaluation mode, gradients switched off.
            batch: ``images``, ``sizes`` and ``original_sizes`` (docs/architecture.md says what
                they are); with ``data.eval_ratios``, ``scaled``: a list of ``images`` and
                ``sizes`` of the same images resized by each ratio.

        Returns:
            For each image uint8 labels (height, width).
        """

    def scored(
        self, model: Segmenter, batch: Mapping[str, Any]
    ) -> tuple[list[Tensor], Sequence[Tensor]]:
        """The labels, and the cross-entropy of each image; none where it is not known.

        Args:
            model: see `labels`.
            batch: with ``masks`` too, the true labels at original size.
        """
        return self.labels(model, batch), ()


class OneScale(Inference):
    """Base of the strategies that see each image at one scale."""

    @abstractmethod
    def views(self, model: Segmenter, images: Tensor, sizes: Tensor) -> list[View]:
        """Logits of each image.

        Args:
            model: see `labels`.
            images: uint8 (B, 3, H, W).
            sizes: (B, 2) heights and widths without padding.
        """

    def labels(self, model: Segmenter, batch: Mapping[str, Any]) -> list[Tensor]:
        """Predict; see the base class.

        Raises:
            UserError: the data comes at several scales, which nothing here would use.
        """
        return self._labels(self._seen(model, batch), batch)

    def scored(
        self, model: Segmenter, batch: Mapping[str, Any]
    ) -> tuple[list[Tensor], Sequence[Tensor]]:
        """Predict and compare; see the base class."""
        views = self._seen(model, batch)
        losses = [sampled_loss(*pair) for pair in zip(views, batch["masks"], strict=True)]
        return self._labels(views, batch), losses

    def _seen(self, model: Segmenter, batch: Mapping[str, Any]) -> list[View]:
        if "scaled" in batch:
            raise UserError(
                f"data.eval_ratios gives each image at several scales, but model.inference is "
                f"{type(self).__name__}, which takes one: set model.inference to "
                "gmf_platform.evaluation.TestTimeAugmentation, or data.eval_ratios to null"
            )
        return self.views(model, batch["images"], batch["sizes"])

    def _labels(self, views: Sequence[View], batch: Mapping[str, Any]) -> list[Tensor]:
        return [
            labels_at_original_size(
                view.logits,
                padded_size=view.padded_size,
                size=view.size,
                original_size=original_size,
            )
            for view, original_size in zip(views, _pairs(batch["original_sizes"]), strict=True)
        ]


class WholeImage(OneScale):
    """Each image at once, as mmsegmentation's ``mode='whole'``."""

    def views(self, model: Segmenter, images: Tensor, sizes: Tensor) -> list[View]:
        """Logits of each image, at the head's resolution."""
        padded_size = (images.shape[2], images.shape[3])
        logits = model(images, sizes).logits
        return [View(x, padded_size, size) for x, size in zip(logits, _pairs(sizes), strict=True)]


class SlidingWindow(OneScale):
    """Windows that overlap, as mmsegmentation's ``mode='slide'``.

    Windows lie ``stride`` pixels apart; the last of a row or column is moved back to end with the
    image. The logits of each are resized to the window, and averaged where windows overlap. An
    edge shorter than ``crop`` is taken whole. Padding is cut off first, so the batch mates of an
    image do not matter.

    Args:
        crop: side of a window, pixels; that of the training crops is right for most networks.
        stride: from window to window, pixels, at most ``crop``.
        batch_size: windows that the network takes at once.

    Raises:
        UserError: a number is out of its range.
    """

    def __init__(
        self, *, crop: PositiveInt = 512, stride: PositiveInt = 341, batch_size: PositiveInt = 8
    ) -> None:
        if not 0 < stride <= crop:
            raise UserError(
                f"model.inference: stride {stride} must be 1 to crop {crop}, or pixels between "
                "the windows would be left out"
            )
        if batch_size < 1:
            raise UserError(f"model.inference: batch_size must be at least 1, not {batch_size}")
        self.crop, self.stride, self.batch_size = crop, stride, batch_size

    def views(self, model: Segmenter, images: Tensor, sizes: Tensor) -> list[View]:
        """Logits of each image, at the resolution of the network's input."""
        return [
            View(self._slide(model, image[:, : size[0], : size[1]]), size, size)
            for image, size in zip(images, _pairs(sizes), strict=True)
        ]

    def _slide(self, model: Segmenter, image: Tensor) -> Tensor:
        """Mean logits (K, H, W) of an image (3, H, W), in float32."""
        windows = self._windows(image.shape[1], image.shape[2])
        total, count = torch.zeros((), device=image.device), torch.zeros_like(image[0]).float()
        for i in range(0, len(windows), self.batch_size):
            chunk = windows[i : i + self.batch_size]
            crops = torch.stack([image[:, rows, columns] for rows, columns in chunk])
            logits = model(crops).logits.float()
            logits = F.interpolate(logits, crops.shape[2:], mode="bilinear", align_corners=False)
            if i == 0:
                total = logits.new_zeros(logits.shape[1], *image.shape[1:])
            for (rows, columns), part in zip(chunk, logits, strict=True):
                total[:, rows, columns] += part
                count[rows, columns] += 1
        return total.div_(count)

    def _windows(self, height: int, width: int) -> list[tuple[slice, slice]]:
        """Rows and columns of each window, all of one size."""
        rows, columns = (self._steps(length) for length in (height, width))
        return [(r, c) for r in rows for c in columns]

    def _steps(self, length: int) -> list[slice]:
        last = max(length - self.crop, 0)
        count = -(-last // self.stride) + 1
        starts = (min(i * self.stride, last) for i in range(count))
        return [slice(start, start + min(self.crop, length)) for start in starts]


class TestTimeAugmentation(Inference):
    """The mean over scales and mirror images of what one strategy finds.

    The scales are those of ``data.eval_ratios``, each resized from the original file; without
    them there is the one scale of the data. The softmax probabilities are averaged at original
    size (see `labels_by_mean_probability`).

    Args:
        flip: take each version mirrored, left to right, as well.
        inference: applied to each version; None: `WholeImage`.
    """

    def __init__(self, *, flip: bool = True, inference: OneScale | None = None) -> None:
        self.flip, self.inference = flip, inference or WholeImage()

    def labels(self, model: Segmenter, batch: Mapping[str, Any]) -> list[Tensor]:
        """Predict; see the base class."""
        by_image = zip(*self._versions(model, batch), strict=True)
        sizes = _pairs(batch["original_sizes"])
        return [
            labels_by_mean_probability(views, size)
            for views, size in zip(by_image, sizes, strict=True)
        ]

    def _versions(self, model: Segmenter, batch: Mapping[str, Any]) -> Iterator[list[View]]:
        """A view of each image, for one version after the other."""
        for version in batch.get("scaled", [batch]):
            images, sizes = version["images"], version["sizes"]
            yield self.inference.views(model, images, sizes)
            if self.flip:
                mirrored = self.inference.views(model, flipped_inside(images, sizes), sizes)
                yield [view._replace(flipped=True) for view in mirrored]


def flipped_inside(images: Tensor, sizes: Tensor) -> Tensor:
    """Mirror images (B, 3, H, W) left to right; the padding stays at the right."""
    flipped = images.clone()
    for image, (height, width) in zip(flipped, _pairs(sizes), strict=True):
        inside = image[:, :height, :width]
        inside.copy_(inside.flip(-1))
    return flipped


def _pairs(sizes: Tensor) -> list[Size]:
    return [(height, width) for height, width in sizes.tolist()]
