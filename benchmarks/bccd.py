"""Blood cells from scratch in a few CPU minutes: GroupMixFormer beside torchvision's ResNet-18.

    python benchmarks/bccd.py BCCD_FOLDER [--minutes 20 | --steps 400]

RetinaNet twice: ours with GroupMixFormer-Mobile, and torchvision's own RetinaNet with its
ResNet-18 and feature pyramid. Both have no pretrained weights, pyramids of the same width, and are
trained with the same images in the same order, the same steps, optimiser and schedule. The minutes
are those of the first; the second takes its steps, in its own time. Both are scored by the same
evaluator on the validation images.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detection_loop import Batch, on, score, seconds_per_step, train
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet as PlainRetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import resnet18
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from datamodules import COCO
from gmf_platform.evaluation import DetectionInference, ImageDetections, at_original_size
from gmf_platform.models.backbones import GroupMixFormer
from gmf_platform.models.detector import Detector
from gmf_platform.models.heads import Detections, RetinaNet


def main() -> None:
    options = parse_arguments()
    data = make_data(options)
    rows = []
    steps = options.steps
    for name, make in (("GroupMixFormer-Mobile", ours), ("ResNet-18 (torchvision)", theirs)):
        torch.manual_seed(options.seed)
        model, losses, detect = make(data, options)
        if steps is None:
            steps = affordable_steps(losses, data, options)
        print(f"{name}: {parameters(model):.1f} M parameters", flush=True)
        batches = on(options.device, data.train_loader(steps=steps))
        seconds = train(model, losses, batches, steps=steps, lr=options.lr)
        scores = score(model, detect, data, "validation", masks=False, device=options.device)
        by_class = zip(data.class_names, scores.class_values["box_ap50"], strict=True)
        values = [scores.values["box_ap50"], scores.values["box_ap"], *(v for _, v in by_class)]
        rows.append((name, parameters(model), seconds / 60, values))
    images, epochs = steps * options.batch, steps / data.steps_per_epoch()
    print(f"\n{steps} steps of {options.batch}: {images} images, {epochs:.1f} epochs\n")
    print_table(rows, ["AP50", "AP", *(f"AP50 {name}" for name in data.class_names)])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("root", type=Path, help="folder with train2017, val2017 and annotations")
    parser.add_argument("--minutes", type=float, default=20, help="of training the first, about")
    parser.add_argument("--steps", type=int, help="instead")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--short", type=int, default=240, help="side of the images, pixels")
    parser.add_argument("--channels", type=int, default=64, help="of the pyramids and towers")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def make_data(options: argparse.Namespace) -> COCO:
    """The blood cells, boxes alone."""
    data = COCO(
        str(options.root),
        scale=(2 * options.short, options.short),
        global_batch_size=options.batch,
        num_workers=0,
        seed=options.seed,
    )
    data.setup("fit")
    return data


Made = tuple[nn.Module, Callable[[Batch], Mapping[str, Tensor]], Callable[[Batch], Any]]


def ours(data: COCO, options: argparse.Namespace) -> Made:
    """GroupMixFormer-Mobile with our RetinaNet."""
    backbone = GroupMixFormer("mobile", drop_path=0.0)
    head = RetinaNet(backbone.channels, len(data.class_names), channels=options.channels)
    model = Detector(backbone, head).to(options.device)

    def losses(batch: Batch) -> Mapping[str, Tensor]:
        found = model(batch["images"], batch["sizes"], batch["targets"])
        assert isinstance(found, dict)
        return found

    return model, losses, partial(DetectionInference().detections, model)


def theirs(data: COCO, options: argparse.Namespace) -> Made:
    """Torchvision's RetinaNet with ResNet-18, its norms trained; all else as torchvision has it."""
    layers = {f"layer{stage}": str(stage) for stage in (2, 3, 4)}
    extra = LastLevelP6P7(512, options.channels)
    body = BackboneWithFPN(resnet18(), layers, [128, 256, 512], options.channels, extra)
    sides = {"min_size": options.short, "max_size": 2 * options.short}  # the images have them
    classes = len(data.class_names)
    model = PlainRetinaNet(body, classes, **sides, detections_per_img=100).to(options.device)

    def cut(batch: Batch) -> list[Tensor]:
        """The images of a batch as torchvision wants them, without padding."""
        sizes = batch["sizes"].tolist()
        pairs = zip(batch["images"], sizes, strict=True)
        return [image[:, :height, :width] / 255 for image, (height, width) in pairs]

    def losses(batch: Batch) -> Mapping[str, Tensor]:
        targets = [{key: x[key] for key in ("boxes", "labels")} for x in batch["targets"]]
        return dict(model(cut(batch), targets))

    def detect(batch: Batch) -> list[ImageDetections]:
        parts = zip(model(cut(batch)), batch["sizes"], batch["original_sizes"], strict=True)
        return [
            at_original_size(
                Detections(found["boxes"], found["scores"], found["labels"]),
                size=pair(size),
                original_size=pair(original_size),
            )
            for found, size, original_size in parts
        ]

    return model, losses, detect


def pair(size: Tensor) -> tuple[int, int]:
    """Height and width."""
    height, width = size.tolist()
    return height, width


def affordable_steps(losses: Any, data: COCO, options: argparse.Namespace) -> int:
    """How many steps the minutes allow."""
    batches: Iterable[Batch] = on(options.device, data.train_loader(steps=5))
    return max(1, int(60 * options.minutes / seconds_per_step(losses, batches)))


def parameters(model: nn.Module) -> float:
    """Number of parameters in millions."""
    return sum(p.numel() for p in model.parameters()) / 1e6


def print_table(
    rows: Sequence[tuple[str, float, float, list[float]]], columns: Sequence[str]
) -> None:
    """One line a model."""
    print(f"{'':26}{'M params':>9}{'minutes':>9}" + "".join(f"{c:>17}" for c in columns))
    for name, millions, minutes, values in rows:
        print(f"{name:26}{millions:9.1f}{minutes:9.1f}" + "".join(f"{v:17.3f}" for v in values))


if __name__ == "__main__":
    main()
