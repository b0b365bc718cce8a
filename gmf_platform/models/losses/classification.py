"""Losses between logits and classes of whole images."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gmf_platform.errors import UserError
from gmf_platform.ranges import NonNegativeFloat, UnitInterval

__all__ = ["SoftTargetCrossEntropy"]


class SoftTargetCrossEntropy(nn.Module):
    """Cross-entropy with a probability of each class as target, mean over images.

    With smoothing, the target is ``(1 - smoothing) * target + smoothing / K``. That is linear, so
    it is the same whether it comes before two images' targets are mixed, as in timm, or after.
    The sum is divided by the number of images, whatever their weights: equal parts of a batch
    add up to the whole.

    Args:
        label_smoothing: share of the target that all classes get alike.
        class_weights: factor of each class's terms, in label order; None: all 1.

    Raises:
        UserError: ``label_smoothing`` is not a share below 1.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        *,
        label_smoothing: UnitInterval = 0.0,
        class_weights: Sequence[NonNegativeFloat] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise UserError(
                f"model.loss.label_smoothing: {label_smoothing} is not a share from 0 to below 1"
            )
        self.label_smoothing = label_smoothing
        weights = None if class_weights is None else torch.tensor(class_weights).float()
        # A setting, not a result of training: it stays out of checkpoints.
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of a batch, a scalar.

        Args:
            logits: (B, K).
            targets: probabilities (B, K), or labels (B,).

        Raises:
            UserError: there are more or fewer class weights than classes.
        """
        weights, num_classes = self.class_weights, logits.shape[1]
        if weights is not None and len(weights) != num_classes:
            raise UserError(
                f"model.loss.class_weights: {len(weights)} weights for {num_classes} classes; "
                "give one for each class, in label order"
            )
        if targets.ndim == 1:
            targets = F.one_hot(targets, num_classes)
        return F.cross_entropy(
            logits.float(),
            targets.float(),
            weight=weights,
            label_smoothing=self.label_smoothing,
        )
