"""Features of regions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_area, roi_align

from gmf_platform.models.heads.detection.boxes import full_precision

__all__ = ["RoIAlign", "as_regions"]


@dataclass(frozen=True)
class RoIAlign:
    """Pools each box from the map whose cells fit its size (He et al., arXiv 1703.06870).

    Lin et al. (arXiv 1612.03144), equation 1, choose the map; the defaults are those of
    mmdetection's SingleRoIExtractor in its Mask R-CNN.

    Args:
        size: of the pooled square in cells.
        sampling_ratio: samples per side of such a cell; 0: one for each cell of the map in it.
        aligned: coordinates are shifted by half a cell, which is right; torchvision's are not.
        strides: of the maps, from fine to coarse.
        finest: boxes under twice this side, in pixels, are pooled from the finest map.
    """

    size: int
    sampling_ratio: int = 0
    aligned: bool = True
    strides: tuple[int, ...] = (4, 8, 16, 32)
    finest: float = 56.0

    def __call__(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Pool boxes (N_i, 4) of image i from maps (B, C, H_j, W_j), as (sum of N_i, C, s, s).

        Maps beyond the strides are not used.
        """
        regions = as_regions(boxes)
        levels = self._levels(regions[:, 1:])
        channels = maps[0].shape[1]
        pooled = maps[0].new_zeros(len(regions), channels, self.size, self.size)
        for level, (x, stride) in enumerate(zip(maps, self.strides, strict=False)):
            chosen = (levels == level).nonzero()[:, 0]
            # In half precision a box would be off by pixels.
            wide = full_precision(x)
            part = roi_align(
                wide,
                regions[chosen].to(wide.dtype),
                self.size,
                1 / stride,
                self.sampling_ratio,
                self.aligned,
            )
            pooled.index_copy_(0, chosen, part.to(x.dtype))
        return pooled

    def _levels(self, boxes: Tensor) -> Tensor:
        # The small number is for boxes of a side that is just a power of 2.
        sides = box_area(boxes).sqrt() / self.finest
        return (sides + 1e-6).log2().floor().clamp(0, len(self.strides) - 1)


def as_regions(boxes: Sequence[Tensor]) -> Tensor:
    """Boxes (N_i, 4) of image i as (sum of N_i, 5) with i in front."""
    numbered = [torch.cat([torch.full_like(x[:, :1], i), x], 1) for i, x in enumerate(boxes)]
    return torch.cat(numbered)
