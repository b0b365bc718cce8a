"""Anchor boxes of a feature pyramid."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gmf_platform.errors import UserError
from gmf_platform.models.heads.detection.boxes import full_precision
from gmf_platform.ranges import PositiveFloat, PositiveInt

__all__ = ["Anchors", "anchors_inside", "by_anchor"]

# The data pads each image to multiples of this; anchors centred beyond lie in the padding that
# makes a batch.
PAD_DIVISOR = 32


@dataclass(frozen=True)
class Anchors:
    """The same boxes around the upper left corner of every cell of every map.

    Computes what mmdetection's AnchorGenerator does with ``center_offset=0``. torchvision rounds
    the boxes around the origin, and takes a level's stride from the size of the map.

    Args:
        strides: pixels per cell of each map, from fine to coarse.
        scales: sides of the square anchor, in strides.
        ratios: heights over widths; the area stays.
        rounded: to whole pixels, half of them to even.

    Raises:
        UserError: there are no strides, scales or ratios.
    """

    strides: tuple[PositiveInt, ...]
    scales: tuple[PositiveFloat, ...]
    ratios: tuple[PositiveFloat, ...] = (0.5, 1.0, 2.0)
    rounded: bool = False

    def __post_init__(self) -> None:
        for name in ("strides", "scales", "ratios"):
            if not getattr(self, name):
                raise UserError(f"anchors.{name}: expected one number at least")

    def check_strides(self, strides: Sequence[int]) -> None:
        """Check that the boxes stand on the cells of a pyramid's maps.

        Args:
            strides: of the maps.

        Raises:
            UserError: the anchors' strides are others.
        """
        if tuple(self.strides) != tuple(strides):
            raise UserError(
                f"anchors.strides: expected {list(strides)}, the strides of the pyramid's maps, "
                f"not {list(self.strides)}; sizes are set by anchors.scales"
            )

    @property
    def per_cell(self) -> int:
        """Number A of anchors of a cell."""
        return len(self.scales) * len(self.ratios)

    def __call__(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Boxes (H_i W_i A, 4) as x1, y1, x2, y2 in pixels for each map (B, C, H_i, W_i).

        Raises:
            ValueError: there are more or fewer maps than strides.
        """
        return [
            self._of_level(stride, x.shape[-2:], x.device)
            for stride, x in zip(self.strides, maps, strict=True)
        ]

    def _of_level(self, stride: int, shape: Sequence[int], device: torch.device) -> Tensor:
        y, x = (stride * torch.arange(n, dtype=torch.float32, device=device) for n in shape)
        corners = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=2)  # (H, W, 2)
        return (corners.repeat(1, 1, 2)[:, :, None] + self._of_cell(stride).to(device)).view(-1, 4)

    def _of_cell(self, stride: int) -> Tensor:
        """Boxes (A, 4) around the origin, the scales of the first ratio before the next's."""
        roots = torch.tensor(self.ratios).sqrt()[:, None]
        sides = stride * torch.tensor(self.scales)
        half = torch.stack([sides / roots, sides * roots], dim=2).view(-1, 2) / 2
        boxes = torch.cat([-half, half], dim=1)
        return boxes.round() if self.rounded else boxes


def anchors_inside(anchors: Tensor, size: Tensor, *, border: float | None = None) -> Tensor:
    """Which anchors (A, 4) may be matched, as booleans (A,).

    Those whose centre is not in the padding made by larger batch mates (mmdetection's valid
    flags), and that reach at most ``border`` pixels beyond the image (its ``allowed_border``).

    Args:
        anchors: as `Anchors` gives them.
        size: (2,) height and width of the image without padding.
        border: None: as far as they like.
    """
    wide, high = size.flip(0).to(anchors.dtype)
    padded = (torch.stack([wide, high]) / PAD_DIVISOR).ceil() * PAD_DIVISOR
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    inside = (centres < padded).all(1)
    if border is None:
        return inside
    upper_left, lower_right = anchors[:, :2] >= -border, anchors[:, 2:] < size.flip(0) + border
    return inside & upper_left.all(1) & lower_right.all(1)


def by_anchor(x: Tensor, numbers: int) -> Tensor:
    """Predictions (B, A numbers, H, W) of cells as (B, H W A, numbers) in the anchors' order.

    They are in float32 at least.
    """
    return full_precision(x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, numbers))
