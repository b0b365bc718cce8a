"""A backbone with a classification head."""

from collections.abc import Callable

from torch import Tensor, nn

from gmf_platform.models.normalize import Normalize

__all__ = ["Classifier"]


class Classifier(nn.Module):
    """Images to class logits.

    Args:
        backbone: images (B, 3, H, W) -> list of feature maps.
        head: feature maps -> logits (B, K).
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.normalize = Normalize()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor, augment: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Logits (B, K).

        Args:
            images: uint8 (B, 3, H, W) RGB.
            augment: applied to the normalised images (B, 3, H, W); None: nothing is.
        """
        x = self.normalize(images)
        if augment is not None:
            x = augment(x)
        logits: Tensor = self.head(self.backbone(x))
        return logits
