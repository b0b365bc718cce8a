"""Mixup, CutMix and random erasing of a normalised batch, on the device.

The distributions are timm's (timm.data.Mixup in mode ``batch``, timm.data.RandomErasing in mode
``pixel``), with which GroupMixFormer's ImageNet code trains. timm's own draw from the global
generators of numpy and Python, which a step's seed does not reach, and erase image by image;
torchvision's pair images otherwise and erase one box for the whole batch. Here all numbers come
from torch's generator of the CPU, so that they are the same on any device, and the noise from that
of the device.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gmf_platform.errors import UserError
from gmf_platform.ranges import NonNegativeFloat, PositiveFloat, UnitInterval

__all__ = ["BatchAugment", "BatchChange"]

_ATTEMPTS = 10
"""Boxes drawn for an image before it is left as it is: one may be larger than the image."""


@dataclass(frozen=True)
class BatchChange:
    """What was drawn for a batch; all tensors on its device.

    Each image's partner is the one at its place counted from the end, as in timm: the middle one
    of an odd batch is its own.

    Attributes:
        mixed: int64 (4,), top, bottom, left, right of the box in which images are mixed.
        own: float32 scalar, an image's own share inside that box; outside it is 1.
        own_overall: the share over all pixels, which is that of the target.
        erased: int64 (B, 4), of each image the box that is filled with noise.
    """

    mixed: Tensor
    own: Tensor
    own_overall: float
    erased: Tensor

    def of_images(self, images: Tensor) -> Tensor:
        """Erase, then mix, normalised images (B, 3, H, W)."""
        height, width = images.shape[-2:]
        erased = _inside(self.erased, height, width)[:, None]
        images = torch.where(erased, torch.randn_like(images), images)
        share = torch.where(_inside(self.mixed, height, width), self.own, 1.0).to(images.dtype)
        return torch.lerp(images.flip(0), images, share)

    def of_labels(self, labels: Tensor, num_classes: int) -> Tensor:
        """Mix labels int64 (B,) to probabilities float32 (B, K)."""
        targets = F.one_hot(labels, num_classes).float()
        return torch.lerp(targets.flip(0), targets, self.own_overall)


class BatchAugment:
    """Draws how to change training batches; see `BatchChange`.

    Each process draws for its own part of a batch, as in timm: mixing has one share per process
    and step, so that it depends on the number of processes.

    Args:
        mixup_alpha: mixup's share is of Beta(alpha, alpha); 0: no mixup.
        cutmix_alpha: likewise, of the area that CutMix leaves; 0: no CutMix.
        mix_probability: that a batch is mixed.
        cutmix_probability: that a mixed batch is so by CutMix, where both are on.
        erase_probability: that an image gets a box of noise.
        erase_area: smallest and largest area of that box, as a share of the image.
        erase_aspect: smallest and largest height over width of it.

    Raises:
        UserError: a number is out of its range.
    """

    def __init__(
        self,
        *,
        mixup_alpha: NonNegativeFloat = 0.8,
        cutmix_alpha: NonNegativeFloat = 1.0,
        mix_probability: UnitInterval = 1.0,
        cutmix_probability: UnitInterval = 0.5,
        erase_probability: UnitInterval = 0.25,
        erase_area: tuple[UnitInterval, UnitInterval] = (0.02, 1 / 3),
        erase_aspect: tuple[PositiveFloat, PositiveFloat] = (0.3, 1 / 0.3),
    ) -> None:
        self.mixup_alpha, self.cutmix_alpha = mixup_alpha, cutmix_alpha
        self.mix_probability, self.cutmix_probability = mix_probability, cutmix_probability
        self.erase_probability = erase_probability
        self.erase_area, self.erase_aspect = erase_area, erase_aspect
        self._check()

    def _check(self) -> None:
        for name, value in vars(self).items():
            match name.rpartition("_")[2]:
                case "alpha":
                    fits, wanted = value >= 0, "0 or more"
                case "probability":
                    fits, wanted = 0 <= value <= 1, "from 0 to 1"
                case "area":
                    fits, wanted = 0 < value[0] <= value[1] <= 1, "two rising shares above 0"
                case _:
                    fits, wanted = 0 < value[0] <= value[1], "two rising numbers above 0"
            if not fits:
                raise UserError(f"model.batch_augment.{name}: {value} must be {wanted}")

    def draw(self, images: Tensor) -> BatchChange:
        """Draw for a batch.

        Args:
            images: of the shape (B, 3, H, W) and on the device; their values are not looked at.
        """
        count, _, height, width = images.shape
        box, own = self._draw_mixing(height, width)
        area = (box[1] - box[0]) * (box[3] - box[2]) / (height * width)
        return BatchChange(
            mixed=torch.tensor(box).to(images.device),
            own=torch.tensor(own).to(images.device),
            own_overall=1 - (1 - own) * area,
            erased=self._draw_erased(count, height, width).to(images.device),
        )

    def _draw_mixing(self, height: int, width: int) -> tuple[tuple[int, int, int, int], float]:
        """The box that is mixed, and an image's own share in it."""
        choice, switch, row, column = torch.rand(4, dtype=torch.float64).tolist()
        mixup, cutmix = self.mixup_alpha > 0, self.cutmix_alpha > 0
        if choice >= self.mix_probability or not (mixup or cutmix):
            return (0, 0, 0, 0), 1.0
        if mixup and not (cutmix and switch < self.cutmix_probability):
            return (0, height, 0, width), _beta(self.mixup_alpha)
        side = math.sqrt(1 - _beta(self.cutmix_alpha))
        rows = _around(int(row * height), int(height * side), height)
        columns = _around(int(column * width), int(width * side), width)
        return (*rows, *columns), 0.0

    def _draw_erased(self, count: int, height: int, width: int) -> Tensor:
        """Boxes (count, 4), of no area where nothing is erased.

        The first of several boxes that is smaller than the image counts.
        """
        numbers = torch.rand(5, _ATTEMPTS, count, dtype=torch.float64)
        area = _between(numbers[0], *self.erase_area) * height * width
        log_aspect = _between(numbers[1], *map(math.log, self.erase_aspect))
        high = (area * log_aspect.exp()).sqrt().round()
        wide = (area / log_aspect.exp()).sqrt().round()
        top = (numbers[2] * (height - high + 1)).floor()
        left = (numbers[3] * (width - wide + 1)).floor()
        boxes = torch.stack([top, top + high, left, left + wide], dim=-1).long()

        fits = (high < height) & (wide < width)
        first = fits.long().argmax(0)
        chosen = fits.any(0) & (numbers[4, 0] < self.erase_probability)
        return boxes[first, torch.arange(count)] * chosen[:, None]


def _beta(alpha: float) -> float:
    concentration = torch.tensor(alpha, dtype=torch.float64)
    return float(torch.distributions.Beta(concentration, concentration).sample())


def _between(uniform: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * uniform


def _around(centre: int, length: int, size: int) -> tuple[int, int]:
    """From ``centre - length // 2`` on, ``length`` long, cut to 0..size."""
    begin = centre - length // 2
    return max(begin, 0), min(begin + length, size)


def _inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Mask (..., H, W) of the pixels in boxes (..., 4)."""
    top, bottom, left, right = boxes[..., None].unbind(-2)
    rows, columns = (torch.arange(size, device=boxes.device) for size in (height, width))
    in_rows = (rows >= top) & (rows < bottom)
    in_columns = (columns >= left) & (columns < right)
    return in_rows[..., :, None] & in_columns[..., None, :]
