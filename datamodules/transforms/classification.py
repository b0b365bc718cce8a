"""The ImageNet recipe's transforms: from the bytes of an image file to one square uint8 image.

The crop is drawn before anything is decoded, so that the decoder does what the crop needs and no
more. At full scale the result is Pillow's. Of large images it is 1 to 1.5 grey levels from it on
average (photos of COCO), nearer than OpenCV's INTER_AREA; and a crop's edges are moved by up to half
a pixel of the result. Normalising, random erasing, mixup and CutMix happen on the device.
"""

import math
import random
from collections.abc import Callable, Sequence
from typing import Literal

import cv2
import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch.nn import functional as F

from datamodules.decode import Box, EncodedImage
from datamodules.images import Image8, decode_image
from datamodules.transforms.adapter import generators
from datamodules.transforms.common_size import CommonSize
from datamodules.transforms.rand_augment import RandAugment
from gmf_platform.errors import UserError, check_least

__all__ = [
    "CommonTransform",
    "EvalTransform",
    "Interpolation",
    "TrainTransform",
    "draw_box",
    "resized",
]

Interpolation = Literal["bicubic", "bilinear"]

_PILLOW = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
# timm fills with the normalisation's mean, rounded: 255 * (0.485, 0.456, 0.406).
_FILL = (124, 116, 104)
_TRIES = 10


class EvalTransform:
    """Resize the short side, cut out the centre: timm's evaluation with Pillow, pixel by pixel.

    Args:
        image_size: side of the result in pixels.
        resize: short side before the cut.
        interpolation: antialiased.

    Raises:
        UserError: the resized image is smaller than the result.
    """

    def __init__(
        self, *, image_size: int, resize: int, interpolation: Interpolation = "bicubic"
    ) -> None:
        if resize < image_size:
            raise UserError(
                f"data.eval_resize: a short side of {resize} pixels is less than "
                f"data.image_size {image_size}"
            )
        self.image_size, self.resize, self.interpolation = image_size, resize, interpolation
        self.resample = _PILLOW[interpolation]

    def __call__(self, data: bytes, *, name: str) -> tuple[Image8, tuple[int, int]]:
        """Decode and transform an image file.

        Args:
            data: its bytes.
            name: what errors call it.

        Returns:
            uint8 (image_size, image_size, 3), and height and width of the original.

        Raises:
            DataError: the file is damaged.
        """
        image = decode_image(data, name)
        return self.of_image(image), image.shape[:2]

    def of_image(self, image: Image8) -> Image8:
        """Transform an image (H, W, 3) to (image_size, image_size, 3)."""
        height, width = image.shape[:2]
        # The long side is cut off, not rounded, and the middle rounded, as torchvision has it.
        short = min(height, width)
        height, width = (int(self.resize * side / short) for side in (height, width))
        picture = Image.fromarray(image).resize((width, height), self.resample)
        left, top = (round((side - self.image_size) / 2) for side in (width, height))
        box = (left, top, left + self.image_size, top + self.image_size)
        return np.array(picture.crop(box))


class CommonTransform:
    """Resize the whole image to the size that it has in all tasks.

    Args:
        size: makes it.
    """

    def __init__(self, size: CommonSize) -> None:
        self.common_size = size

    def __call__(self, data: bytes, *, name: str) -> tuple[Image8, tuple[int, int]]:
        """Decode and resize an image file; see EvalTransform."""
        image = decode_image(data, name)
        return self.common_size(image), (image.shape[0], image.shape[1])


class TrainTransform:
    """Random crop, flip, and RandAugment or colour jitter; a function of file and seed.

    Args:
        image_size: side of the result in pixels.
        scale: smallest and largest share of the image's area in the crop.
        ratio: smallest and largest width of the crop over its height.
        interpolation: antialiased.
        hflip: chance of a mirror image.
        rand_augment: in timm's notation; None: none.
        color_jitter: brightness, contrast and saturation are each multiplied by up to 1 +- this.
            As in timm, only where there is no RandAugment.
    """

    def __init__(
        self,
        *,
        image_size: int,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        interpolation: Interpolation = "bicubic",
        hflip: float = 0.5,
        rand_augment: str | None = "rand-m9-mstd0.5-inc1",
        color_jitter: float = 0.4,
    ) -> None:
        check_least("data.image_size", image_size)
        _check_range("scale", scale, most=1.0)
        _check_range("ratio", ratio)
        self.image_size, self.scale, self.ratio = image_size, scale, ratio
        self.interpolation, self.hflip = interpolation, hflip
        self.color_jitter = color_jitter
        self.rand_augment = (
            RandAugment.parse(rand_augment, resample=_PILLOW[interpolation], fill=_FILL)
            if rand_augment
            else None
        )

    def __call__(
        self, data: bytes, *, name: str, seed: tuple[int, ...]
    ) -> tuple[Image8, tuple[int, int]]:
        """Decode and transform an image file.

        Args:
            data: its bytes.
            name: what errors call it.
            seed: (run seed, epoch, sample index).

        Returns:
            uint8 (image_size, image_size, 3), and height and width of the original.

        Raises:
            DataError: the file is damaged.
        """
        draw = generators(seed)[1]
        encoded = EncodedImage.open(data, name)
        box = draw_box(encoded.size, scale=self.scale, ratio=self.ratio, draw=draw)
        region = encoded.region(box, at_least=self.image_size)
        image = resized(region, self.image_size, interpolation=self.interpolation)
        if draw.random() < self.hflip:
            image = cv2.flip(image, 1).astype(
                np.uint8, copy=False
            )  # numpy's takes 40 times as long
        if self.rand_augment is not None:
            image = self.rand_augment(image, draw=draw)
        elif self.color_jitter:
            image = _jittered(image, self.color_jitter, draw)
        return image, encoded.size


def draw_box(
    size: tuple[int, int],
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    draw: random.Random,
) -> Box:
    """Draw the crop of Inception training, in timm's order of draws (RandomResizedCrop).

    Area uniform in ``scale``, logarithm of width over height uniform in ``ratio``; after ten that
    do not fit, the largest one in the centre whose ratio is allowed.

    Args:
        size: height and width of the image in pixels.
        scale: share of its area.
        ratio: width over height.
        draw: the generator.
    """
    height, width = size
    lowest, highest = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_TRIES):
        area = draw.uniform(*scale) * (height * width)
        aspect = math.exp(draw.uniform(lowest, highest))
        across, down = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        across, down = max(1, across), max(1, down)  # of images of a few pixels
        if across <= width and down <= height:
            top, left = draw.randint(0, height - down), draw.randint(0, width - across)
            return Box(top, left, down, across)
    across = min(width, max(1, round(height * ratio[1])))
    down = min(height, max(1, round(width / ratio[0])))
    return Box((height - down) // 2, (width - across) // 2, down, across)


def resized(image: Image8, side: int, *, interpolation: Interpolation) -> Image8:
    """Resize to a square, antialiased: Pillow's result to rounding, several times as fast.

    The horizontal pass is always first. Pillow 13 begins with the cheaper one, which differs where
    bicubic overshoots and is clipped, by 0.2 grey levels on average.

    Args:
        image: uint8 (H, W, 3), contiguous.
        side: in pixels.
        interpolation: the kernel; Pillow's bicubic has a = -0.5, and so does torch's antialiased.
    """
    # Permuted as a batch: strides of channels_last in all dimensions, or torch gives planes back.
    batch = torch.from_numpy(image)[None].permute(0, 3, 1, 2)
    out = F.interpolate(batch, (side, side), mode=interpolation, antialias=True)
    return np.ascontiguousarray(out[0].permute(1, 2, 0).numpy())


def _jittered(image: Image8, amount: float, draw: random.Random) -> Image8:
    """Change brightness, contrast and saturation in random order (torchvision's ColorJitter)."""
    picture = Image.fromarray(image)
    for kind in draw.sample(_ENHANCERS, k=len(_ENHANCERS)):
        picture = kind(picture).enhance(draw.uniform(max(0.0, 1 - amount), 1 + amount))
    return np.array(picture)


_ENHANCERS: Sequence[Callable[[Image.Image], ImageEnhance._Enhance]] = (
    ImageEnhance.Brightness,
    ImageEnhance.Contrast,
    ImageEnhance.Color,
)


def _check_range(key: str, bounds: tuple[float, float], *, most: float = math.inf) -> None:
    if not 0 < bounds[0] <= bounds[1] <= most:
        limit = "" if most == math.inf else f" up to {most:g}"
        raise UserError(
            f"data.{key}: {list(bounds)} is no range of positive numbers{limit} [low, high]"
        )
