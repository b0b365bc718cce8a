"""Drawn sample data in the layouts of ADE20K, COCO and ImageNet, for demos and tests.

Nothing here imports torch: drawing a sample starts at once and needs no GPU.
"""

from datamodules.sample_data.scenes import GROUNDS, SHAPES
from datamodules.sample_data.writer import Layout, write_sample

__all__ = ["GROUNDS", "SHAPES", "Layout", "write_sample"]
