"""Can the network learn 8 images by heart? Box AP and mask AP on the images it was trained on.

    python benchmarks/overfit_detection.py COCO_FOLDER [--minutes 60 | --steps 1500] [--device cpu]

Mask R-CNN from scratch on the first images of train2017 that have no crowd, one to six objects
and none smaller than an eighth of the image's side, at one small scale and without flips. Masks
of 28 x 28 cells cannot be exact: the mask AP stands beside what the truth itself reaches when it
is sent through such masks (benchmarks/mask_limit.py).
"""

import argparse
import json
import tempfile
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from detection_loop import on, score, seconds_per_step, train
from mask_limit import mask_limit

from datamodules import COCO
from gmf_platform.evaluation import DetectionInference
from gmf_platform.models.backbones import GroupMixFormer
from gmf_platform.models.detector import Detector
from gmf_platform.models.heads import MaskRCNN
from gmf_platform.models.norm import set_norm_mode


def main() -> None:
    options = parse_arguments()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        few = write_few(options.root / "annotations", Path(folder) / "few.json", options.images)
        data = make_data(options, few)
        detector = Detector(
            GroupMixFormer(options.variant, drop_path=0.0),
            MaskRCNN([], 0) if False else make_head(options, data),
        ).to(options.device)
        run(options, data, detector, few)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("root", type=Path, help="folder with train2017 and annotations")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=60, help="of training, about")
    parser.add_argument("--steps", type=int, help="instead")
    parser.add_argument("--variant", default="mobile")
    parser.add_argument("--short", type=int, default=256, help="side of the images, pixels")
    parser.add_argument("--channels", type=int, default=128, help="of the pyramid")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()
