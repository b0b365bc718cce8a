"""Augmentation: albumentations behind one adapter that seeds it per sample."""

import os

# albumentations asks the network for a newer version when it is imported, unless told not to.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

from datamodules.transforms.adapter import Augmentation, Augmented
from datamodules.transforms.photometric import PhotoMetricDistortion
from datamodules.transforms.segmentation import (
    AtCommonSize,
    Pad,
    RandomCrop,
    RandomResize,
    Resize,
    eval_transform,
    train_transform,
)

__all__ = [
    "AtCommonSize",
    "Augmentation",
    "Augmented",
    "Pad",
    "PhotoMetricDistortion",
    "RandomCrop",
    "RandomResize",
    "Resize",
    "eval_transform",
    "train_transform",
]
