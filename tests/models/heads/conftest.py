"""Images with objects, for all detection heads."""

import pytest
import torch
import torch.nn.functional as F

CLASSES = 5
SIZES = ((128, 192), (100, 180))  # of two images; the second is padded to the first


def random_boxes(number, *, seed):
    """Boxes of 15 to 80 pixels inside the smaller image."""
    generator = torch.Generator().manual_seed(seed)
    size = 15 + 65 * torch.rand(number, 2, generator=generator)
    corner = torch.rand(number, 2, generator=generator) * (torch.tensor([180.0, 100.0]) - size)
    return torch.cat([corner, corner + size], dim=1)


def random_targets(numbers=(6, 4), *, device="cpu"):
    """Truth of two images with so many objects."""
    targets = []
    for seed, number in enumerate(numbers):
        generator = torch.Generator().manual_seed(100 + seed)
        noise = torch.rand(number, 1, 16, 24, generator=generator)
        smooth = F.interpolate(noise, SIZES[0], mode="bilinear") if number else noise
        masks = (smooth[:, 0] > 0.5).to(torch.uint8)
        target = {
            "boxes": random_boxes(number, seed=seed),
            "labels": torch.randint(0, CLASSES, (number,), generator=generator),
            "masks": masks if number else masks.new_zeros(0, *SIZES[0]),
        }
        moved = {key: value.to(device) for key, value in target.items()}
        targets.append({**moved, "seed": 17 + seed})
    return targets


@pytest.fixture(name="random_targets")
def random_targets_fixture():
    return random_targets


@pytest.fixture(name="random_boxes")
def random_boxes_fixture():
    return random_boxes


@pytest.fixture
def image_sizes():
    return torch.tensor(SIZES)
