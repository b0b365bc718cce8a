import os
import random
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import pytest

from datamodules.images import read_image, read_mask
from datamodules.transforms import (
    Augmentation,
    Pad,
    PhotoMetricDistortion,
    RandomCrop,
    RandomResize,
    Resize,
    eval_transform,
    train_transform,
)
from gmf_platform.errors import UserError

IGNORE = 255


def sample(height, width, seed=0, classes=150, cell=20):
    """Return a smooth picture and square-like regions of labels."""
    draw = np.random.default_rng(seed)
    cells = (max(height // cell, 2), max(width // cell, 2))
    image = draw.integers(0, 256, (*cells, 3), dtype=np.uint8)
    labels = draw.integers(0, classes, cells, dtype=np.uint8)
    labels[0, 0] = IGNORE
    return (
        cv2.resize(image, (width, height)),
        cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST),
    )


def seeded(transform, seed):
    transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
    return transform


# Resizing


def rescaled(height, width, scale):
    """mmcv's rule."""
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((512, 683), (512, 683)),
        ((683, 512), (683, 512)),
        ((256, 256), (512, 512)),
        ((300, 451), (512, 770)),  # 451 * 512 / 300 = 769.7
        ((100, 1000), (205, 2048)),  # the long edge decides: 100 * 2.048 = 204.8
    ],
)
def test_resize_by_hand(shape, expected):
    image, mask = sample(*shape)
    result = Resize((2048, 512))(image=image, mask=mask)
    assert result["image"].shape == (*expected, 3)
    assert result["mask"].shape == expected


def test_random_resize_follows_the_rule_over_many_seeds():
    transform = RandomResize((256, 64), (0.5, 2.0))
    shapes = np.random.default_rng(0).integers(20, 120, (200, 2))
    for seed, (height, width) in enumerate(shapes.tolist()):
        image, mask = sample(height, width, seed, cell=8)
        result = seeded(transform, seed)(image=image, mask=mask)
        ratio = transform.params["ratio"]
        size = rescaled(height, width, (int(256 * ratio), int(64 * ratio)))
        expected = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(result["image"], expected)
        expected = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST)
        np.testing.assert_array_equal(result["mask"], expected)


def test_bilinear_resize_is_half_pixel_centred_and_not_antialiased():
    image, _ = sample(40, 60)
    small = Resize((30, 20))(image=image)["image"]
    # At half the size each value lies between the four pixels of its cell.
    cells = image.reshape(20, 2, 30, 2, 3).astype(float).mean(axis=(1, 3))
    assert np.abs(small - cells).max() <= 1
    quarter = Resize((15, 10))(image=image)["image"]
    centres = image.reshape(10, 4, 15, 4, 3)[:, 1:3, :, 1:3].astype(float).mean(axis=(1, 3))
    assert np.abs(quarter - centres).max() <= 1


def test_masks_are_resized_to_the_nearest_pixel():
    mask = np.arange(15 * 20, dtype=np.uint16).astype(np.uint8).reshape(15, 20)
    for scale, step in [((40, 30), 2), ((80, 60), 4)]:
        result = Resize(scale)(image=np.dstack([mask] * 3), mask=mask)["mask"]
        np.testing.assert_array_equal(result, mask.repeat(step, axis=0).repeat(step, axis=1))
    half = Resize((10, 8))(image=np.dstack([mask[:14]] * 3), mask=mask[:14])["mask"]
    np.testing.assert_array_equal(half, mask[:14:2, ::2])


def test_ratio_is_uniform():
    transform = RandomResize((64, 16), (0.5, 2.0))
    image = np.zeros((16, 20, 3), np.uint8)
    ratios = []
    for seed in range(1500):
        seeded(transform, seed)(image=image)
        ratios.append(transform.params["ratio"])
    expected = np.linspace(0.5, 2.0, 1500)
    assert np.abs(np.sort(ratios) - expected).max() / 1.5 < 1.95 / np.sqrt(1500)  # KS at 0.1 %


def test_a_sliver_keeps_at_least_one_pixel():
    assert Resize((64, 16))(image=np.zeros((1, 999, 3), np.uint8))["image"].shape == (1, 64, 3)


# Cropping


def crop_by_the_rule(mask, draw, size, limit, tries):
    """mmsegmentation's rule, on numpy's unique; also say how many crops were refused."""

    def propose():
        top = draw.randint(0, max(mask.shape[0] - size, 0))
        left = draw.randint(0, max(mask.shape[1] - size, 0))
        return slice(top, top + size), slice(left, left + size)

    window = propose()
    for refused in range(tries):
        labels, counts = np.unique(mask[window], return_counts=True)
        counts = counts[labels != IGNORE]
        if len(counts) > 1 and counts.max() / counts.sum() < limit:
            return window, refused
        window = propose()
    return window, tries


def mostly_one_class(seed, height=70, width=90):
    draw = np.random.default_rng(seed)
    mask = np.full((height, width), draw.choice([3, 3, 3, IGNORE]), np.uint8)
    for _ in range(draw.integers(0, 4)):
        top, left = draw.integers(0, 60), draw.integers(0, 80)
        mask[top : top + 25, left : left + 25] = draw.choice([0, 7, 149, IGNORE])
    return mask


def test_random_crop_follows_the_rule_over_many_seeds():
    transform = RandomCrop(32, 0.75)
    refusals = []
    for seed in range(400):
        mask = mostly_one_class(seed)
        image = np.dstack([mask] * 3)
        result = seeded(transform, seed)(image=image, mask=mask)
        window, refused = crop_by_the_rule(mask, random.Random(seed), 32, 0.75, 10)
        np.testing.assert_array_equal(result["mask"], mask[window])
        np.testing.assert_array_equal(result["image"], image[window])
        refusals.append(refused)
    assert set(refusals) >= {0, 1, 5, 9, 10}  # taken at once, late, and never


def test_exactly_the_limit_is_refused():
    mask = np.zeros((32, 32), np.uint8)
    mask[:8] = 1  # 75 % zeros
    crop = RandomCrop(32, 0.75)
    assert not crop._is_mixed(mask)
    mask[8, 0] = 1
    assert crop._is_mixed(mask)


def test_windows_are_uniform_without_the_rule():
    transform = RandomCrop(16, max_category_ratio=1.0)
    picture = np.arange(18 * 18, dtype=np.uint16).astype(np.uint8).reshape(18, 18)
    counts = {}
    for seed in range(1800):
        result = seeded(transform, seed)(image=np.dstack([picture] * 3), mask=picture)
        corner = int(result["mask"][0, 0])
        counts[corner] = counts.get(corner, 0) + 1
    assert sorted(counts) == [18 * y + x for y in range(3) for x in range(3)]
    assert np.abs(np.array(list(counts.values())) - 200).max() < 5 * np.sqrt(200)


@pytest.mark.parametrize("shape", [(20, 20), (20, 90), (90, 20)])
def test_short_edges_are_taken_whole(shape):
    image, mask = sample(*shape)
    result = RandomCrop(32)(image=image, mask=mask)
    expected = min(shape[0], 32), min(shape[1], 32)
    assert result["mask"].shape == expected
    assert result["image"].shape == (*expected, 3)


# Padding


@pytest.mark.parametrize("shape", [(20, 20), (20, 40), (40, 20), (32, 32), (31, 32)])
def test_pad_fills_right_and_bottom_and_tells_the_size(shape):
    image, mask = sample(*shape)
    result = Pad(32)(image=image + 1, mask=mask)
    height, width = max(shape[0], 32), max(shape[1], 32)
    assert result["size"] == shape
    assert result["image"].shape == (height, width, 3)
    expected = np.zeros((height, width, 3), np.uint8)
    expected[: shape[0], : shape[1]] = image + 1
    np.testing.assert_array_equal(result["image"], expected)
    labels = np.full((height, width), IGNORE, np.uint8)
    labels[: shape[0], : shape[1]] = mask
    np.testing.assert_array_equal(result["mask"], labels)


# The whole chain


def without_colours(**options):
    transforms = train_transform(**options).compose.transforms
    return Augmentation([t for t in transforms if not isinstance(t, PhotoMetricDistortion)])


@pytest.mark.parametrize("shape", [(512, 683), (683, 512), (256, 256), (90, 700)])
def test_train_result_has_one_shape_and_only_known_labels(shape):
    augmentation = train_transform()
    image, mask = sample(*shape)
    for index in range(8):
        result = augmentation(image=image, mask=mask, seed=(0, 0, index))
        assert result["image"].shape == (512, 512, 3)
        assert result["mask"].shape == (512, 512)
        assert result["image"].dtype == result["mask"].dtype == np.uint8
        assert set(np.unique(result["mask"])) <= {*np.unique(mask), IGNORE}
        height, width = result["size"]
        assert not result["image"][height:].any()
        assert not result["image"][:, width:].any()
        assert (result["mask"][height:] == IGNORE).all()
        assert (result["mask"][:, width:] == IGNORE).all()


def test_image_and_mask_stay_aligned():
    """The picture shows the label numbers, so away from borders both must agree."""
    augmentation = without_colours(crop=96, scale=(384, 96))
    _, mask = sample(96, 140, cell=24)
    image = np.dstack([mask, mask, np.tile(np.arange(140, dtype=np.uint8), (96, 1))])
    flips = 0
    for index in range(60):
        result = augmentation(image=image, mask=mask, seed=(0, 0, index))
        height, width = result["size"]
        labels = result["mask"][:height, :width]
        picture = result["image"][:height, :width]
        inner = cv2.dilate(labels, np.ones((5, 5))) == cv2.erode(labels, np.ones((5, 5)))
        inner[[0, 1, -2, -1]] = inner[:, [0, 1, -2, -1]] = False  # what lies behind is unknown
        assert inner.mean() > 0.3
        np.testing.assert_array_equal(picture[..., 0][inner], labels[inner])
        flips += bool(picture[0, 0, 2] > picture[0, -1, 2])
    assert 10 < flips < 50


def test_half_of_the_samples_are_flipped_together_with_their_mask():
    augmentation = train_transform(crop=32, scale=(64, 32), ratio_range=(1, 1))
    mask = np.zeros((32, 32), np.uint8)
    mask[:, 16:] = 1
    image = np.dstack([60 + 120 * mask] * 3)
    flipped = []
    for index in range(600):
        result = augmentation(image=image, mask=mask, seed=(0, 0, index))
        left_is_bright = result["image"][0, 0, 0] > result["image"][0, -1, 0]
        assert left_is_bright == (result["mask"][0, 0] == 1)
        flipped.append(left_is_bright)
    assert abs(np.mean(flipped) - 0.5) < 5 * 0.5 / np.sqrt(600)


def test_rectangular_crops_and_extra_transforms():
    extra = [A.Rotate(20, fill_mask=IGNORE, p=1)]
    augmentation = train_transform(crop=(32, 64), scale=(256, 64), extra=extra)
    image, mask = sample(64, 96)
    result = augmentation(image=image, mask=mask, seed=(0,))
    assert result["image"].shape == (32, 64, 3)
    assert result["mask"].shape == (32, 64)
    assert any(isinstance(t, A.Rotate) for t in augmentation.compose.transforms)


def test_eval_resizes_the_image_alone():
    image, _ = sample(300, 451)
    result = eval_transform()(image=image, seed=(0,))
    np.testing.assert_array_equal(result["image"], cv2.resize(image, (770, 512)))
    assert result["size"] == (512, 770)
    assert "mask" not in result


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: train_transform(ratio_range=(2.0, 0.5)), "ratio_range"),
        (lambda: train_transform(scale=(0, 512)), "scale"),
        (lambda: train_transform(crop=0), "crop"),
        (lambda: RandomCrop(32, ignore_index=-1), "ignore_index"),
        (lambda: eval_transform((512, -1)), "scale"),
    ],
)
def test_wrong_settings_are_refused(build, words):
    with pytest.raises(UserError, match=words):
        build()


@pytest.mark.data
def test_real_photos_go_through_the_recipe():
    if "GMF_DATA" not in os.environ:
        pytest.skip("GMF_DATA does not point to the small real data sets")
    root = Path(os.environ["GMF_DATA"]) / "ade20k_mini"
    augmentation = train_transform()
    masks = sorted((root / "annotations").rglob("*.png"))
    assert masks
    for index, path in enumerate(masks):
        photo = root / "images" / path.parent.name / f"{path.stem}.jpg"
        labels = read_mask(path).astype(np.uint8) - 1  # 0, "other", becomes 255
        result = augmentation(image=read_image(photo), mask=labels, seed=(0, 0, index))
        assert result["image"].shape == (512, 512, 3)
        assert set(np.unique(result["mask"])) <= {*np.unique(labels), IGNORE}
        assert result["image"].std() > 5
