import itertools
import random

import albumentations as A
import cv2
import numpy as np
import pytest

from datamodules.transforms import PhotoMetricDistortion

NAMES = ("brightness", "contrast", "contrast_last", "saturation", "hue")


def photo(seed=0):
    draw = np.random.default_rng(seed)
    smooth = cv2.resize(draw.integers(0, 256, (5, 7, 3), dtype=np.uint8), (70, 40))
    smooth[:20] = draw.integers(0, 256, (20, 70, 3), dtype=np.uint8)
    smooth[0, :2] = [[0, 0, 0], [255, 255, 255]]
    return smooth


def plain(image, brightness, contrast, contrast_last, saturation, hue):
    """The rule step by step, on BGR as mmsegmentation has it."""
    image = image[..., ::-1].copy()

    def linear(values, factor, offset):
        return np.clip(values.astype(np.float32) * factor + offset, 0, 255).astype(np.uint8)

    if brightness is not None:
        image = linear(image, 1, brightness)
    if contrast is not None and not contrast_last:
        image = linear(image, contrast, 0)
    if saturation is not None:
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[..., 1] = linear(hsv[..., 1], saturation, 0)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if hue is not None:
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + hue) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if contrast is not None and contrast_last:
        image = linear(image, contrast, 0)
    return image[..., ::-1]


def drawn(count, **options):
    transform = PhotoMetricDistortion(**options)
    for seed in range(count):
        transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
        yield transform.get_params()


def test_bit_exact_against_the_plain_rule_for_what_is_drawn():
    compose = A.Compose([PhotoMetricDistortion()])
    kinds = set()
    for seed in range(300):
        compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        image = photo(seed)
        result = compose(image=image)["image"]
        params = {name: compose.transforms[0].params[name] for name in NAMES}
        np.testing.assert_array_equal(result, plain(image, **params))
        kinds.add((params.pop("contrast_last"), *(value is None for value in params.values())))
    assert len(kinds) == 32  # each of the five choices both ways


@pytest.mark.parametrize("hue", [None, -18, 0, 17])
def test_bit_exact_at_the_ends_of_all_ranges(hue):
    ends = itertools.product((None, -32, 32), (None, 0.5, 1.5), (False, True), (None, 0.5, 1.5))
    for values in ends:
        params = dict(zip(NAMES, (*values, hue), strict=True))
        result = PhotoMetricDistortion().apply(photo(), **params)
        np.testing.assert_array_equal(result, plain(photo(), **params))


@pytest.mark.parametrize("name", NAMES)
def test_each_change_has_probability_one_half(name):
    values = [params[name] for params in drawn(2000)]
    share = np.mean([value is not None and value is not False for value in values])
    assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(2000)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("brightness", -32, 32), ("contrast", 0.5, 1.5), ("saturation", 0.5, 1.5)],
)
def test_amounts_are_uniform(name, low, high):
    values = np.sort([p[name] for p in drawn(2000) if p[name] is not None])
    expected = np.linspace(low, high, len(values))
    # Kolmogorov-Smirnov at 0.1 %
    assert np.abs(values - expected).max() / (high - low) < 1.95 / np.sqrt(len(values)) + 1e-3
    assert low <= values[0]
    assert values[-1] <= high


def test_hue_is_one_of_36_integers():
    values = {params["hue"] for params in drawn(2000)} - {None}
    assert values == set(range(-18, 18))


def test_ranges_of_nothing_change_nothing():
    for params in drawn(50, brightness=0, contrast=(1, 1), hue=0):
        params["saturation"] = None
        np.testing.assert_array_equal(PhotoMetricDistortion().apply(photo(), **params), photo())
