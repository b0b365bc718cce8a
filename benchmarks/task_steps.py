"""Training steps of whole tasks with GroupMixFormer-Tiny, beside the same with timm's Swin-T.

    python benchmarks/task_steps.py segmentation --clock processor
    python benchmarks/task_steps.py detection --runs 1

Segmentation: UperNet with its auxiliary head at 512 x 512, 150 classes. The heads, which equal
mmsegmentation's, are the same on both sides. Detection at 800 x 1333, 80 classes: our Mask R-CNN,
beside torchvision's on a pyramid of its own. Forward and backward; the optimiser's step, the same
for both, is left out. Weights are random and nothing is dropped at random.
"""

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from gmf_platform.benchmark.memory import step_memory
from gmf_platform.benchmark.timing import Ratio, interleaved, machine
from gmf_platform.cli.device import prepare_device
from gmf_platform.models.backbones import GroupMixFormer, TimmBackbone
from gmf_platform.models.detector import Detector
from gmf_platform.models.heads import FCNHead, MaskRCNN, UPerNet
from gmf_platform.models.losses import CrossEntropy
from gmf_platform.models.segmenter import Segmenter

CROP, SEGMENT_CLASSES = 512, 150
HEIGHT, WIDTH, OBJECT_CLASSES = 800, 1333, 80
OBJECTS = 8
"""In an image; COCO has 7.3 on average."""

Step = tuple[nn.Module, Callable[[], Tensor]]


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    prepare_device("cpu" if options.device == "cpu" else "gpu")
    make = segmentation if options.task == "segmentation" else detection
    steps: dict[str, Step] = {}
    for name, build in (("GroupMixFormer-Tiny", groupmixformer), ("Swin-T (timm)", swin)):
        torch.manual_seed(0)
        steps[name] = make(build(), options)
    device = torch.device(options.device)
    tasks = {name: partial(run, step, options) for name, step in steps.items()}
    warmup = int(options.runs > 1)
    times = interleaved(tasks, runs=options.runs, device=device, warmup=warmup, clock=options.clock)
    print(machine(device))
    ours = next(iter(times.values()))
    for name, (net, loss) in steps.items():
        text = f"{name:22}{min(times[name]):8.2f} s, {Ratio.of(times[name], ours)} of ours"
        if options.memory:
            net.zero_grad()
            memory = step_memory(partial(under_autocast, loss, options), device=device)
            assert memory is not None  # only compiled code gives none
            text += f"; peak {memory.peak / 2**30:.2f} GiB"
        print(text, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("task", choices=("segmentation", "detection"))
    parser.add_argument("--batch", type=int, default=2, help="UperNet's norms need two")
    parser.add_argument("--bf16", action="store_true", help="under autocast")
    parser.add_argument("--runs", type=int, default=2, help="one goes without a warm-up")
    parser.add_argument("--memory", action="store_true", help="of one more step of each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def run(step: Step, options: argparse.Namespace) -> None:
    net, loss = step
    net.zero_grad()
    under_autocast(loss, options).backward()


def under_autocast(loss: Callable[[], Tensor], options: argparse.Namespace) -> Tensor:
    with torch.autocast(options.device, torch.bfloat16, enabled=options.bf16):
        return loss()


def groupmixformer() -> GroupMixFormer:
    return GroupMixFormer("tiny", drop_path=0.0)


def swin() -> TimmBackbone:
    return TimmBackbone("swin_tiny_patch4_window7_224", drop_path=0.0)


def segmentation(backbone: GroupMixFormer | TimmBackbone, options: argparse.Namespace) -> Step:
    """UperNet of 512 channels and an auxiliary head, as in the recipes of the Swin paper."""
    auxiliary = FCNHead(backbone.channels, SEGMENT_CLASSES)
    net = Segmenter(backbone, UPerNet(backbone.channels, SEGMENT_CLASSES), auxiliary)
    net.to(options.device).to(memory_format=torch.channels_last).train()
    images = pixels(options, CROP, CROP)
    labels = torch.randint(SEGMENT_CLASSES, (options.batch, CROP, CROP), device=options.device)
    criterion = CrossEntropy()

    def loss() -> Tensor:
        output = net(images)
        total: Tensor = criterion(output.logits, labels)
        return total + 0.4 * criterion(output.auxiliary, labels)

    return net, loss


def detection(backbone: GroupMixFormer | TimmBackbone, options: argparse.Namespace) -> Step:
    """Mask R-CNN: ours with our backbone, torchvision's with Swin-T."""
    ours = isinstance(backbone, GroupMixFormer)
    padded = (HEIGHT, WIDTH + -WIDTH % 32)  # as torchvision pads by itself
    images = pixels(options, *(padded if ours else (HEIGHT, WIDTH)))
    targets = [objects(i, padded if ours else (HEIGHT, WIDTH)) for i in range(options.batch)]
    targets = [{k: v.to(options.device) for k, v in target.items()} for target in targets]
    if not ours:
        return torchvision_detection(backbone, images, targets, options)
    net = Detector(backbone, MaskRCNN(backbone.channels, OBJECT_CLASSES))
    net.to(options.device).to(memory_format=torch.channels_last).train()
    sizes = torch.tensor([[HEIGHT, WIDTH]] * options.batch, device=options.device)
    seeded = [target | {"seed": i} for i, target in enumerate(targets)]
    return net, lambda: total(net(images, sizes, seeded))


def torchvision_detection(
    backbone: nn.Module,
    images: Tensor,
    targets: list[dict[str, Tensor]],
    options: argparse.Namespace,
) -> Step:
    sides = {"min_size": HEIGHT, "max_size": WIDTH}  # the images have them
    net = TorchvisionMaskRCNN(WithPyramid(backbone), OBJECT_CLASSES + 1, **sides)
    net.to(options.device).to(memory_format=torch.channels_last).train()
    given = [image / 255 for image in images]
    shifted = [target | {"labels": target["labels"] + 1} for target in targets]
    return net, lambda: total(net(given, shifted))


class WithPyramid(nn.Module):
    """A backbone as torchvision's detectors take it."""

    out_channels = 256

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.fpn = FeaturePyramidNetwork(
            list(backbone.channels), self.out_channels, LastLevelMaxPool()
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps of the strides 4 to 64, by name."""
        maps: dict[str, Tensor] = self.fpn({str(i): x for i, x in enumerate(self.backbone(images))})
        return maps


def total(losses: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def pixels(options: argparse.Namespace, height: int, width: int) -> Tensor:
    images = torch.randint(256, (options.batch, 3, height, width), dtype=torch.uint8)
    return images.to(options.device, memory_format=torch.channels_last)


def objects(number: int, size: tuple[int, int]) -> dict[str, Tensor]:
    """Boxes of random places and sides, whose masks they fill."""
    generator = torch.Generator().manual_seed(number)
    corner = torch.rand(OBJECTS, 2, generator=generator) * torch.tensor([WIDTH - 400, HEIGHT - 400])
    sides = 30 + 360 * torch.rand(OBJECTS, 2, generator=generator)
    boxes = torch.cat([corner, corner + sides], dim=1)
    masks = torch.zeros(OBJECTS, *size, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    labels = torch.randint(OBJECT_CLASSES, (OBJECTS,), generator=generator)
    return {"boxes": boxes, "labels": labels, "masks": masks}


if __name__ == "__main__":
    main()
