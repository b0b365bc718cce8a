"""From files on disk to batches: one LightningDataModule a data set.

Names are imported on first use, so that checking a folder needs neither torch nor Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.ade20k import ADE20K
    from datamodules.base import BaseDataModule
    from datamodules.coco import COCO
    from datamodules.imagenet import ImageNet
    from datamodules.multitask import MultiTask
    from datamodules.segmentation_files import SegmentationFiles

__all__ = ["ADE20K", "COCO", "BaseDataModule", "ImageNet", "MultiTask", "SegmentationFiles"]

_HOME = {
    "ADE20K": "datamodules.ade20k",
    "BaseDataModule": "datamodules.base",
    "COCO": "datamodules.coco",
    "ImageNet": "datamodules.imagenet",
    "MultiTask": "datamodules.multitask",
    "SegmentationFiles": "datamodules.segmentation_files",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'datamodules' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
