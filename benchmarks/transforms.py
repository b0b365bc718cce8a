"""Time the ADE20K training transform against torchvision v2 with the same operations.

    python benchmarks/transforms.py [--image photo.jpg --mask labels.png] [--runs 300]

Both get a decoded picture and return uint8 tensors, image (3, 512, 512) contiguous and mask
(512, 512), on one thread each. Runs are interleaved, and torchvision repeats what ours drew: the
ratio, the flip and the four colour changes. Antialiasing is off in both, as in the recipe.
"""

import argparse
import random
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

import cv2
import numpy as np
import torch
import torchvision
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from datamodules.images import read_image, read_mask
from datamodules.transforms import Augmentation, PhotoMetricDistortion, train_transform

CROP = 512
TRIES = 10


def main() -> None:
    """Print the times of three variants: the recipe, without its class rule, without its colours."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", type=Path, help="a photo; default: a synthetic one, 683 x 512")
    parser.add_argument("--mask", type=Path, help="its labels; default: synthetic")
    parser.add_argument("--runs", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    image, mask = synthetic()
    if arguments.image:
        image = read_image(arguments.image)
        mask = cv2.resize(mask, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    if arguments.mask:
        mask = read_mask(arguments.mask).astype(np.uint8)
    print(f"OpenCV {cv2.__version__}, torchvision {torchvision.__version__}, {image.shape}")
    print(f"{'':22}{'ours median (mean)':>22}{'torchvision':>22}{'ratio':>8}")
    compare("recipe", train_transform(), image, mask, runs=arguments.runs)
    free = train_transform(max_category_ratio=1.0)
    compare("without class rule", free, image, mask, runs=arguments.runs)
    compare("without colours", without_colours(), image, mask, runs=arguments.runs)


def compare(
    name: str, ours: Augmentation, image: np.ndarray, mask: np.ndarray, *, runs: int
) -> None:
    """Print one line: milliseconds of both, and how many times as fast ours is by the medians."""
    # Channels last, in which torchvision resizes several times as fast as from contiguous planes.
    image_tensor = torch.from_numpy(image).permute(2, 0, 1)
    mask_tensor = torch.from_numpy(mask)[None]
    mine: list[float] = []
    theirs: list[float] = []
    for index in range(-10, runs):  # ten to warm up
        start = time.perf_counter()
        result = ours(image=image, mask=mask, seed=(0, 0, index))
        torch.from_numpy(result["image"]).permute(2, 0, 1).contiguous()
        middle = time.perf_counter()
        drawn = {type(t).__name__: t.params for t in ours.compose.transforms}
        rule = ours.compose.transforms[1].max_category_ratio
        again = time.perf_counter()
        by_torchvision(image_tensor, mask_tensor, drawn, max_category_ratio=rule)
        end = time.perf_counter()
        if index >= 0:
            mine.append((middle - start) * 1e3)
            theirs.append((end - again) * 1e3)
    ratio = median(theirs) / median(mine)
    figures = (f"{median(times):.2f} ({mean(times):.2f}) ms" for times in (mine, theirs))
    print(f"{name:22}" + "".join(f"{figure:>22}" for figure in figures) + f"{ratio:8.2f}")


def by_torchvision(
    image: Tensor, mask: Tensor, drawn: dict[str, dict[str, Any]], *, max_category_ratio: float
) -> tuple[Tensor, Tensor]:
    """Do the same with torchvision v2, cropping before the colours as ours does."""
    width, height = drawn["RandomResize"]["new_size"]
    image = F.resize(image, [height, width], InterpolationMode.BILINEAR, antialias=False)
    mask = F.resize(mask, [height, width], InterpolationMode.NEAREST)
    image, mask = crop(image, mask, max_category_ratio)
    if drawn["HorizontalFlip"]:
        image, mask = F.horizontal_flip(image), F.horizontal_flip(mask)
    image = distorted(image, **drawn.get("PhotoMetricDistortion", {}))
    padding = [0, 0, CROP - image.shape[2], CROP - image.shape[1]]
    if any(padding):
        image, mask = F.pad(image, padding, fill=0), F.pad(mask, padding, fill=255)
    return image.contiguous(), mask.contiguous()


def crop(image: Tensor, mask: Tensor, max_category_ratio: float) -> tuple[Tensor, Tensor]:
    height, width = min(CROP, image.shape[1]), min(CROP, image.shape[2])
    for _ in range(TRIES + 1):
        top = random.randint(0, image.shape[1] - height)
        left = random.randint(0, image.shape[2] - width)
        part = F.crop(mask, top, left, height, width)
        if max_category_ratio >= 1:
            break
        counts = torch.bincount(part.flatten(), minlength=256)[:255]
        if counts.count_nonzero() > 1 and counts.max() / counts.sum() < max_category_ratio:
            break
    return F.crop(image, top, left, height, width), part


def distorted(
    image: Tensor,
    *,
    brightness: float | None = None,
    contrast: float | None = None,
    contrast_last: bool = False,
    saturation: float | None = None,
    hue: int | None = None,
    **_: Any,
) -> Tensor:
    """Change colours by the same amounts; 32 grey levels become a factor of 1 +- 32 / 255."""
    if brightness is not None:
        image = F.adjust_brightness(image, 1 + brightness / 255)
    if contrast is not None and not contrast_last:
        image = F.adjust_contrast(image, contrast)
    if saturation is not None:
        image = F.adjust_saturation(image, saturation)
    if hue is not None:
        image = F.adjust_hue(image, hue / 180)
    if contrast is not None and contrast_last:
        image = F.adjust_contrast(image, contrast)
    return image


def without_colours() -> Augmentation:
    transforms = train_transform().compose.transforms
    return Augmentation([t for t in transforms if not isinstance(t, PhotoMetricDistortion)])


def synthetic() -> tuple[np.ndarray, np.ndarray]:
    """Return a smooth picture (512, 683, 3) and regions of about 60 pixels in 150 classes."""
    draw = np.random.default_rng(0)
    image = cv2.resize(draw.integers(0, 256, (32, 43, 3), dtype=np.uint8), (683, 512))
    labels = draw.integers(0, 150, (8, 11), dtype=np.uint8)
    return image, cv2.resize(labels, (683, 512), interpolation=cv2.INTER_NEAREST)


if __name__ == "__main__":
    main()
