"""Time the ImageNet training loader against torchvision's ImageFolder and timm's transforms.

    python benchmarks/loader.py [--folder PHOTOS] [--sizes 224x224 640x480 2000x1500] [--json]

Images a second of processor time on one core, from the file (cached) to what is handed to the
device: theirs is a normalised float tensor, ours uint8, since we normalise, erase, mix up and CutMix
there. torchvision: Pillow, RandomResizedCrop (bicubic), flip, ToTensor, Normalize. timm: its own
training transform with RandAugment and random erasing; also without erasing, which ours leaves to
the device. Passes over all images alternate between the sides; the figures are of the median pass.

Without --folder the JPEGs are drawn; their bytes a pixel are printed, since most of the time goes
into Huffman decoding, which nobody is spared. Photos of COCO have 0.5 bytes a pixel, of ADE20K 0.2.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch.utils.data import Dataset
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from datamodules import decode
from datamodules.imagenet import ImageNet
from datamodules.sample_data.scenes import draw_scene
from gmf_platform.distributed.order import SampleKey

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RECIPE = "rand-m9-mstd0.5-inc1"
PIXELS = 8_000_000  # of all images of a size: enough to smooth the random crops


def main() -> None:
    """Print a table for each size, or one line of JSON for all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="photos in a folder a class, instead of drawn")
    parser.add_argument("--sizes", nargs="+", default=["224x224", "640x480", "2000x1500"])
    parser.add_argument("--quality", type=int, default=85, help="of drawn JPEGs")
    parser.add_argument("--passes", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    results = {}
    with TemporaryDirectory() as temporary:
        folders = {"photos": arguments.folder} if arguments.folder else {}
        for size in () if arguments.folder else arguments.sizes:
            folders[size] = Path(temporary) / size
            draw_folder(folders[size], size, quality=arguments.quality)
        for name, folder in folders.items():
            results[name] = compare(folder, passes=arguments.passes)
            if not arguments.json:
                print_table(name, results[name])
    if arguments.json:
        print(json.dumps(results))


def compare(folder: Path, *, passes: int) -> dict[str, float]:
    """Images a second of each side, and ratios."""
    sides = {
        "torchvision": ImageFolder(folder, by_torchvision()),
        "ours": ours(folder, rand_augment=None),
        "timm": ImageFolder(folder, by_timm(erasing=0.25)),
        "timm, no erasing": ImageFolder(folder, by_timm(erasing=0.0)),
        "ours, RandAugment": ours(folder, rand_augment=RECIPE),
    }
    count = len(sides["ours"])  # type: ignore[arg-type]
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(-1, passes):  # one to warm up
        for name, dataset in sides.items():
            took = timed(dataset, count, epoch=number + 1)
            if number >= 0:
                seconds[name].append(took)
    rates = {name: count / median(times) for name, times in seconds.items()}
    files = [path for path in folder.rglob("*") if path.is_file()]
    pixels = sum(width * height for width, height in map(size_of, files))
    return rates | {
        "ours / torchvision": rates["ours"] / rates["torchvision"],
        "ours / timm": rates["ours, RandAugment"] / rates["timm"],
        "ours / timm, no erasing": rates["ours, RandAugment"] / rates["timm, no erasing"],
        "bytes a pixel": sum(path.stat().st_size for path in files) / pixels,
    }


def timed(dataset: Dataset[Any], count: int, *, epoch: int) -> float:
    theirs = isinstance(dataset, ImageFolder)
    keys = [index if theirs else SampleKey(epoch, index) for index in range(count)]
    torch.manual_seed(epoch)
    random.seed(epoch)
    np.random.seed(epoch)
    begun = time.process_time()  # other work on the machine does not count
    for key in keys:
        with suppress(
            ValueError
        ):  # timm posterises to 0 bits now and then, which Pillow 13 refuses
            dataset[key]
    return time.process_time() - begun


def ours(folder: Path, *, rand_augment: str | None) -> Dataset[Any]:
    # One image of each class is held out; what remains is timed.
    data = ImageNet(str(folder), val_fraction=1e-6, rand_augment=rand_augment, color_jitter=0)
    return data.dataset("training", training=True)


def by_torchvision() -> Callable[[Image.Image], torch.Tensor]:
    return T.Compose(
        [
            T.RandomResizedCrop(224, interpolation=T.InterpolationMode.BICUBIC),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(MEAN, STD),
        ]
    )


def by_timm(*, erasing: float) -> Callable[[Image.Image], torch.Tensor]:
    return create_transform(
        224,
        is_training=True,
        auto_augment=RECIPE,
        interpolation="bicubic",
        re_prob=erasing,
        re_mode="pixel",
    )


def draw_folder(folder: Path, size: str, *, quality: int) -> None:
    """Draw JPEGs of two classes, of about as many pixels for each size."""
    width, height = map(int, size.split("x"))
    count = max(4, min(60, PIXELS // (width * height)))
    for index in range(count):
        scene = draw_scene(index, seed=0, split="train", size=max(width, height)).image
        path = folder / "ab"[index % 2] / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene[:height, :width]).save(path, quality=quality)


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def print_table(name: str, figures: dict[str, float]) -> None:
    decoder = (
        "OpenCV" if decode.simplejpeg is None else f"simplejpeg {decode.simplejpeg.__version__}"
    )
    print(f"{name}: {figures['bytes a pixel']:.2f} bytes a pixel; ours decodes with {decoder}")
    for key, value in figures.items():
        if key != "bytes a pixel":
            print(f"  {key:26}{value:8.2f}" + (" images/s" if "/" not in key else " x"))


if __name__ == "__main__":
    main()
