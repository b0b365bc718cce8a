"""Can the network learn a few images by heart? Box and mask AP on what it was trained on.

    python benchmarks/overfit_detection.py COCO_FOLDER [--minutes 60 | --steps 1500] [--device cpu]

Mask R-CNN from scratch on the first wide images of train2017 that have no crowd and one to six
objects, none of less than a hundredth of the image: all in one batch, at one small scale, never
flipped. Masks of 28 x 28 cells cannot be exact, so the mask AP stands beside what the truth itself
reaches when it is sent through such masks (benchmarks/mask_limit.py).
"""

import argparse
import json
import tempfile
from collections import defaultdict
from dataclasses import replace
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
from gmf_platform.models.heads.detection.regions import BoxSettings
from gmf_platform.models.heads.detection.rpn import RPNSettings


def main() -> None:
    options = parse_arguments()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        few = Path(folder) / "few.json"
        names = write_few(options.root, few, options.images)
        data = make_data(options, few)
        backbone = GroupMixFormer(options.variant, drop_path=0.0)
        model = Detector(backbone, make_head(backbone, data, options)).to(options.device)
        print(f"{options.images} images: {', '.join(names)}; {len(data.class_names)} classes")
        steps, seconds = fit(options, data, model)
        detect = partial(DetectionInference().detections, model)
        scores = score(model, detect, data, "validation", masks=True, device=options.device)
        limit = mask_limit(few)
    print(f"{steps} steps in {seconds / 60:.1f} minutes on {options.device}\n")
    print(f"{'':10}{'reached':>9}{'limit':>9}{'share':>9}")
    for name in ("box_ap", "box_ap50", "mask_ap", "mask_ap50"):
        ours, most = scores.values[name], limit.values[name]
        print(f"{name:10}{ours:9.3f}{most:9.3f}{ours / most:9.1%}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("root", type=Path, help="folder with train2017 and annotations")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=60, help="of training, about")
    parser.add_argument("--steps", type=int, help="instead")
    parser.add_argument("--variant", default="mobile")
    parser.add_argument("--short", type=int, default=224, help="side of the images, pixels")
    parser.add_argument("--channels", type=int, default=128, help="of the pyramid")
    parser.add_argument("--regions", type=int, default=128, help="drawn of an image in training")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def write_few(root: Path, path: Path, count: int) -> list[str]:
    """Write an annotation file of the first images that qualify; gives their names."""
    content = json.loads((root / "annotations" / "instances_train2017.json").read_text())
    objects = defaultdict(list)
    for annotation in content["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    images = list(islice((i for i in content["images"] if fits(i, objects[i["id"]])), count))
    annotations = [annotation for image in images for annotation in objects[image["id"]]]
    used = {annotation["category_id"] for annotation in annotations}
    categories = [category for category in content["categories"] if category["id"] in used]
    few = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(few))
    return [image["file_name"] for image in images]


def fits(image: dict[str, Any], objects: list[dict[str, Any]]) -> bool:
    """Whether an image is wide, and has few and large objects."""
    area = image["width"] * image["height"]
    wide = image["width"] > image["height"]
    large = all(not x["iscrowd"] and x["area"] >= 0.01 * area for x in objects)
    return wide and large and 1 <= len(objects) <= 6


def make_data(options: argparse.Namespace, few: Path) -> COCO:
    """The few images, for training and for evaluation; both in one batch, padded alike."""
    data = COCO(
        str(options.root),
        train_annotations=str(few),
        val_images="train2017",
        val_annotations=str(few),
        scale=(2 * options.short, options.short),
        flip=0.0,
        with_masks=True,
        aspect_grouping=False,
        global_batch_size=options.images,
        eval_batch_size=options.images,
        num_workers=0,
    )
    data.setup("fit")
    return data


def make_head(backbone: GroupMixFormer, data: COCO, options: argparse.Namespace) -> MaskRCNN:
    """Mask R-CNN as in its recipe, but narrower, and with fewer regions an image."""
    regions = replace(BoxSettings().sampler, number=options.regions)
    return MaskRCNN(
        backbone.channels,
        len(data.class_names),
        channels=options.channels,
        rpn=RPNSettings(proposals_train=2 * options.regions),
        box=BoxSettings(sampler=regions),
    )


def fit(options: argparse.Namespace, data: COCO, model: Detector) -> tuple[int, float]:
    """Train for the time or the steps asked for; gives both."""

    def losses(batch: Any) -> Any:
        return model(batch["images"], batch["sizes"], batch["targets"])

    def batches(count: int) -> Any:
        return on(options.device, data.train_loader(steps=count))

    steps = options.steps
    if steps is None:
        steps = max(1, int(60 * options.minutes / seconds_per_step(losses, batches(3))))
    return steps, train(model, losses, batches(steps), steps=steps, lr=options.lr)


if __name__ == "__main__":
    main()
