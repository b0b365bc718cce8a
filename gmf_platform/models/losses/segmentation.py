"""Losses between logits and label pictures.

Many processes equal one, and accumulated parts equal the whole batch, where the mean of the losses
of equal parts of a batch is the loss of the batch. That holds of all losses here but
`OhemCrossEntropy`, because they divide by what does not depend on the labels.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from gmf_platform.errors import UserError
from gmf_platform.ranges import NonNegativeFloat, PositiveFloat, PositiveInt, UnitInterval

__all__ = ["CrossEntropy", "Dice", "Focal", "OhemCrossEntropy", "SegmentationLoss", "Sum"]


class SegmentationLoss(nn.Module, ABC):
    """Base of the losses: float32 logits at the size of the labels.

    Args:
        ignore_index: label of the pixels that add nothing.
    """

    def __init__(self, *, ignore_index: int = 255) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of a batch.

        Args:
            logits: (B, K, h, w), resized to the labels (bilinear, corners not aligned).
            labels: (B, H, W) of any integer type.

        Returns:
            A scalar; zero, with zero gradients, where all pixels are ignored.
        """
        resized = F.interpolate(
            logits, size=labels.shape[-2:], mode="bilinear", align_corners=False
        )
        return self.of_pixels(resized.float(), labels.long())

    @abstractmethod
    def of_pixels(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of logits (B, K, H, W) and labels (B, H, W) of equal size, a scalar."""


class CrossEntropy(SegmentationLoss):
    """Cross-entropy over all pixels.

    The sum is divided by the number of all pixels, ignored ones included and whatever their
    weight, as mmsegmentation does by default (``avg_non_ignore=False``; with class weights, its
    releases 0.x).

    Args:
        class_weights: factor of each class's pixels, in label order; None: all 1.
        ignore_index: label of the pixels that add nothing.
    """

    class_weights: Tensor | None

    def __init__(
        self, *, class_weights: Sequence[NonNegativeFloat] | None = None, ignore_index: int = 255
    ) -> None:
        super().__init__(ignore_index=ignore_index)
        weights = (
            None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        )
        # A setting, not a result of training: it stays out of checkpoints.
        self.register_buffer("class_weights", weights, persistent=False)

    def of_pixels(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Weighted sum over the pixels, divided by their number."""
        by_pixel = F.cross_entropy(logits, labels, ignore_index=self.ignore_index, reduction="none")
        weights = self.weights_of_pixels(by_pixel.detach(), logits.shape[1], labels)
        return (by_pixel if weights is None else by_pixel * weights).sum() / labels.numel()

    def weights_of_pixels(
        self, by_pixel: Tensor, num_classes: int, labels: Tensor
    ) -> Tensor | None:
        """Factor of each pixel's loss ``by_pixel`` (B, H, W); None: all 1.

        Raises:
            UserError: there are more or fewer class weights than classes.
        """
        weights = self.class_weights
        if weights is None:
            return None
        if len(weights) != num_classes:
            raise UserError(
                f"model.loss.class_weights: {len(weights)} weights for {num_classes} classes; "
                "give one for each class, in label order"
            )
        return weights[torch.where(labels == self.ignore_index, 0, labels)]


class OhemCrossEntropy(CrossEntropy):
    """Cross-entropy of the hard pixels alone (online hard example mining).

    mmsegmentation's OHEMPixelSampler with a threshold: a pixel counts if its own class has a
    probability under ``threshold``, or under that of the pixel at place ``min_kept`` x B in the
    batch's order from hard to easy, whichever is higher. The divisor is the number of all pixels.

    The order is that of one process's batch, as in mmsegmentation: with several processes or
    accumulation, each part chooses its own hard pixels, so the sum of parts is not the whole.

    Args:
        threshold: probability of its own class from which on a pixel is easy.
        min_kept: pixels per image that are kept at least, counted over the batch.
        class_weights: factor of each class's pixels, in label order; None: all 1.
        ignore_index: label of the pixels that add nothing.

    Raises:
        UserError: a number is out of its range.
    """

    def __init__(
        self,
        *,
        threshold: UnitInterval = 0.7,
        min_kept: PositiveInt = 100_000,
        class_weights: Sequence[NonNegativeFloat] | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(class_weights=class_weights, ignore_index=ignore_index)
        if not (0 <= threshold <= 1 and min_kept > 0):
            raise UserError(
                f"model.loss: threshold {threshold} must be 0..1, min_kept {min_kept} at least 1"
            )
        self.threshold, self.min_kept = threshold, min_kept

    def weights_of_pixels(self, by_pixel: Tensor, num_classes: int, labels: Tensor) -> Tensor:
        """Factor of each pixel's loss ``by_pixel`` (B, H, W): 0 for the easy ones."""
        known = labels != self.ignore_index
        probability = torch.exp(-by_pixel)  # of the pixel's own class
        from_hard_to_easy = probability[known].sort().values
        if not len(from_hard_to_easy):
            return known.float()
        place = min(self.min_kept * len(labels), len(from_hard_to_easy) - 1)
        limit = from_hard_to_easy[place].clamp(min=self.threshold)
        hard = (known & (probability < limit)).float()
        weights = super().weights_of_pixels(by_pixel, num_classes, labels)
        return hard if weights is None else hard * weights


class Focal(SegmentationLoss):
    """Focal loss (Lin et al., arXiv 1708.02002) of each class against all others.

    torchvision's ``sigmoid_focal_loss``; the sum is divided by the number of all pixels times
    that of the classes, as in mmsegmentation's FocalLoss.

    Args:
        gamma: how much less an easy pixel counts.
        alpha: share of a pixel's own class in the balance with the others; below 0: no balance.
        ignore_index: label of the pixels that add nothing.
    """

    def __init__(
        self, *, gamma: NonNegativeFloat = 2.0, alpha: float = 0.5, ignore_index: int = 255
    ) -> None:
        super().__init__(ignore_index=ignore_index)
        self.gamma, self.alpha = gamma, alpha

    def of_pixels(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum over pixels and classes, divided by the number of both."""
        known = (labels != self.ignore_index)[:, None]
        own = torch.where(known, labels[:, None], 0)
        targets = torch.zeros_like(logits).scatter_(1, own, 1.0)
        losses: Tensor = sigmoid_focal_loss(logits, targets, self.alpha, self.gamma)
        return (losses * known).sum() / logits.numel()


class Dice(SegmentationLoss):
    """Dice loss (Milletari et al., V-Net, arXiv 1606.04797), mean over images and classes.

    ``1 - (2 sum(p t) + smooth) / (sum(p^2) + sum(t^2) + smooth)`` with the softmax probability p
    and the truth t (0 or 1) of a class at the pixels of an image that are not ignored. The form
    is mmsegmentation's DiceLoss, which leaves ignored pixels in its denominator, however.

    Args:
        smooth: keeps the quotient of a class that an image does not have apart from 0 / 0.
        ignore_index: label of the pixels that add nothing.

    Raises:
        UserError: ``smooth`` is not positive.
    """

    def __init__(self, *, smooth: PositiveFloat = 1.0, ignore_index: int = 255) -> None:
        super().__init__(ignore_index=ignore_index)
        if smooth <= 0:
            raise UserError(f"model.loss.smooth must be more than 0, not {smooth}")
        self.smooth = smooth

    def of_pixels(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over images and classes."""
        known = (labels != self.ignore_index).flatten(1)  # (B, N)
        own = torch.where(known, labels.flatten(1), 0)
        p = logits.softmax(1).flatten(2) * known[:, None]  # (B, K, N)
        p_own = p.gather(1, own[:, None])[:, 0]
        zeros = p.new_zeros(p.shape[:2])
        overlap = zeros.scatter_add(1, own, p_own)
        truth = zeros.scatter_add(1, own, known.to(p.dtype))
        predicted = p.square().sum(2)
        quotients = (2 * overlap + self.smooth) / (predicted + truth + self.smooth)
        return 1 - quotients.mean()


class Sum(nn.Module):
    """A weighted sum of losses.

    Args:
        losses: each (logits, labels) -> scalar.
        weights: factor of each loss, in the same order; None: all 1.

    Raises:
        UserError: there are more or fewer weights than losses.
    """

    def __init__(
        self, *, losses: Sequence[nn.Module], weights: Sequence[NonNegativeFloat] | None = None
    ) -> None:
        super().__init__()
        self.losses = nn.ModuleList(losses)
        self.weights = list(weights) if weights is not None else [1.0] * len(self.losses)
        if not losses or len(self.weights) != len(self.losses):
            raise UserError(
                f"model.loss: {len(self.weights)} weights for {len(self.losses)} losses; "
                "give one weight for each of at least one loss"
            )

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of a batch; see `SegmentationLoss.forward`."""
        terms = [
            weight * loss(logits, labels)
            for loss, weight in zip(self.losses, self.weights, strict=True)
        ]
        return torch.stack(terms).sum()
