"""The ImageNet transforms against timm's and Pillow's."""

import io
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import ColorJitter

from datamodules import decode
from datamodules.sample_data.scenes import draw_scene
from datamodules.transforms.adapter import generators
from datamodules.transforms.classification import (
    EvalTransform,
    TrainTransform,
    _jittered,
    draw_box,
    resized,
)
from gmf_platform.errors import UserError

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def scene():
    return draw_scene(2, seed=0, split="train", size=400).image


def by_timm(data, size, resize, interpolation="bicubic"):
    transform = create_transform(
        size,
        is_training=False,
        interpolation=interpolation,
        crop_pct=size / resize,
        normalize=False,
    )
    with Image.open(io.BytesIO(data)) as image:
        return transform(image.convert("RGB")).permute(1, 2, 0).numpy()


@pytest.mark.parametrize(("size", "resize"), [(224, 256), (384, 438), (96, 96)])
@pytest.mark.parametrize("shape", [(300, 400), (400, 301), (211, 97), (224, 224), (256, 300)])
def test_evaluation_is_timms_pixel_by_pixel(scene, size, resize, shape):
    image = scene[: shape[0], : shape[1]]
    ours = EvalTransform(image_size=size, resize=resize)
    for data in (encoded(image, quality=90), encoded(image, "PNG"), encoded(image[..., 0])):
        result, original = ours(data, name="a.jpg")
        np.testing.assert_array_equal(result, by_timm(data, size, resize))
        assert original == shape


def test_evaluation_bilinear(scene):
    data = encoded(scene[:, :300])
    result, _ = EvalTransform(image_size=128, resize=146, interpolation="bilinear")(data, name="a")
    np.testing.assert_array_equal(result, by_timm(data, 128, 146, "bilinear"))


@pytest.mark.data
def test_evaluation_is_timms_on_photos():
    if "GMF_DATA" not in os.environ:
        pytest.skip("GMF_DATA does not point to the small real data sets")
    root = Path(os.environ["GMF_DATA"])
    files = [*sorted(root.glob("imagenette_mini/val/*/*"))[::20]]
    files += sorted(root.glob("coco_mini/val2017/*"))[:10]
    if not files:
        pytest.skip("GMF_DATA has neither imagenette_mini nor coco_mini")
    ours = EvalTransform(image_size=224, resize=256)
    for path in files:
        data = path.read_bytes()
        result, _ = ours(data, name=str(path))
        np.testing.assert_array_equal(result, by_timm(data, 224, 256), err_msg=str(path))


def test_evaluation_turns_upright(scene):
    tags = Image.Exif()
    tags[0x0112] = 6
    lying = np.rot90(scene[:300]).copy()
    result, original = EvalTransform(image_size=224, resize=256)(
        encoded(lying, "PNG", exif=tags), name="a"
    )
    assert original == (300, 400)
    np.testing.assert_array_equal(result, by_timm(encoded(scene[:300], "PNG"), 224, 256))


def test_evaluation_cannot_cut_more_than_there_is():
    with pytest.raises(UserError, match=r"data\.eval_resize: .* 200 .* less than .* 224"):
        EvalTransform(image_size=224, resize=200)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", [(400, 380), (224, 300), (300, 200), (50, 90), (1, 1), (399, 20)])
def test_resizing_is_pillows(scene, shape, interpolation):
    """To a rounding in each pass, of which the horizontal one is first."""
    image = np.ascontiguousarray(scene[: shape[0], : shape[1]])
    kernel = getattr(Image.Resampling, interpolation.upper())
    picture = Image.fromarray(image)
    in_one = np.asarray(picture.resize((224, 224), kernel))
    in_two = np.asarray(picture.resize((224, shape[0]), kernel).resize((224, 224), kernel))
    result = resized(image, 224, interpolation=interpolation)
    assert result.flags.c_contiguous
    difference = np.abs(result.astype(int) - in_two)
    assert difference.max() <= 2
    assert np.mean(difference > 1) < 1e-4
    assert np.abs(result.astype(int) - in_one).mean() < 0.3  # Pillow 13 may begin vertically


@pytest.mark.parametrize("size", [(300, 400), (400, 300), (20, 1000), (1000, 20), (3, 3)])
def test_boxes_are_timms(size):
    picture = Image.new("RGB", size[::-1])
    for seed in range(200):
        random.seed(seed)
        expected = RandomResizedCropAndInterpolation.get_params(picture, SCALE, RATIO)
        box = draw_box(size, scale=SCALE, ratio=RATIO, draw=random.Random(seed))
        assert tuple(box) == tuple(
            max(1, edge) if i > 1 else edge for i, edge in enumerate(expected)
        )


def plain(**settings):
    return TrainTransform(image_size=224, rand_augment=None, color_jitter=0, **settings)


def by_pillow(data, seed, side=224):
    """The exact pipeline with the draws of ours, the box rounded to the reduced scale's pixels."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    draw = generators(seed)[1]
    box = draw_box(image.size[::-1], scale=SCALE, ratio=RATIO, draw=draw)
    factor = 1
    while factor < 8 and min(box.divided(2 * factor)[2:]) >= side:
        factor *= 2
    top, left, height, width = (factor * edge for edge in box.divided(factor))
    image = image.crop((left, top, left + width, top + height))
    result = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)).astype(int)
    return (result[:, ::-1] if draw.random() < 0.5 else result), factor


@pytest.mark.parametrize("decoder", ["simplejpeg", "OpenCV"])
def test_training_is_pillows_crop_resize_and_flip(scene, monkeypatch, decoder):
    """To rounding at full scale (see test_resizing_is_pillows), and close at reduced scale."""
    if decoder == "OpenCV":
        monkeypatch.setattr(decode, "simplejpeg", None)
    large = np.asarray(Image.fromarray(scene).resize((1600, 1200), Image.Resampling.BICUBIC))
    grain = np.random.default_rng(0).normal(0, 4, large.shape)
    large = np.clip(large + grain, 0, 255).astype(np.uint8)
    seen = {}
    for data in (encoded(scene[:300], quality=90), encoded(large, quality=90)):
        for index in range(12):
            seed = (0, 0, index)
            expected, factor = by_pillow(data, seed)
            result, _ = plain()(data, name="a.jpg", seed=seed)
            seen.setdefault(factor, []).append(np.abs(result - expected))
    assert {1, 2, 4} <= set(seen)
    means = {factor: np.mean(differences) for factor, differences in seen.items()}
    assert means[1] < 0.2
    assert means[2] < 1.2
    assert means[4] < 1.2


def test_a_sample_is_a_function_of_its_seed_alone(scene):
    data = encoded(scene)
    transform = TrainTransform(image_size=64)

    def run(*seed):
        return transform(data, name="a", seed=seed)[0]

    first = [run(3, epoch, index) for epoch in range(3) for index in range(4)]
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    again = [run(3, epoch, index) for epoch in range(3) for index in range(4)]
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len({image.tobytes() for image in first}) == 12
    assert (run(4, 0, 0) != first[0]).any()


def test_half_of_the_images_are_mirrored():
    ramp = np.tile(np.arange(0, 250, 5, dtype=np.uint8)[None, :, None], (50, 1, 3))
    data = encoded(ramp, "PNG")
    transform = TrainTransform(image_size=16, rand_augment=None, color_jitter=0)
    images = [transform(data, name="a", seed=(0, 0, i))[0].astype(int) for i in range(400)]
    mirrored = sum(image[:, 0].mean() > image[:, -1].mean() for image in images)
    assert 160 < mirrored < 240  # 4 standard deviations


def test_colour_jitter_only_without_rand_augment(scene):
    data = encoded(scene)
    both = TrainTransform(image_size=32, rand_augment="rand-m9-p0", color_jitter=0.4)
    neither = TrainTransform(image_size=32, rand_augment=None, color_jitter=0)
    jittered = TrainTransform(image_size=32, rand_augment=None, color_jitter=0.4)
    for index in range(5):
        images = [t(data, name="a", seed=(0, 0, index))[0] for t in (both, neither, jittered)]
        np.testing.assert_array_equal(images[0], images[1])
        assert (images[2] != images[1]).any()


def test_colour_jitter_is_torchvisions(scene, monkeypatch):
    """With torchvision made to draw what ours draws."""
    image = scene[:64, :64]
    for seed in range(10):
        draw = random.Random(seed)
        order = draw.sample(range(3), k=3)
        factors = [0.0] * 3
        for kind in order:
            factors[kind] = draw.uniform(0.6, 1.4)
        jitter = ColorJitter(0.4, 0.4, 0.4)
        drawn = (torch.tensor(order), *factors, None)
        monkeypatch.setattr(jitter, "get_params", lambda *_, drawn=drawn: drawn)
        expected = np.asarray(jitter(Image.fromarray(image)))
        np.testing.assert_array_equal(_jittered(image, 0.4, random.Random(seed)), expected)


@pytest.mark.parametrize("key", ["scale", "ratio"])
@pytest.mark.parametrize("bounds", [(0.5, 0.2), (0.0, 1.0)])
def test_wrong_ranges(key, bounds):
    with pytest.raises(UserError, match=rf"data\.{key}: .* is no range"):
        TrainTransform(image_size=32, **{key: bounds})
