"""RandAugment against timm's: pixels of each operation, magnitudes, chances."""

import random
from unittest.mock import MagicMock

import numpy as np
import pytest
from PIL import Image
from timm.data.auto_augment import AugmentOp, rand_augment_transform

from datamodules.sample_data.scenes import draw_scene
from datamodules.transforms.rand_augment import OPERATIONS, RandAugment
from gmf_platform.errors import UserError

RECIPE = "rand-m9-mstd0.5-inc1"
FILL = (124, 116, 104)
SETTINGS = {"img_mean": FILL, "interpolation": Image.Resampling.BICUBIC}


@pytest.fixture(scope="module")
def image():
    return draw_scene(3, seed=0, split="train", size=96).image[:80]


def theirs(text):
    return rand_augment_transform(text, dict(SETTINGS))


def short(name):
    return name.removesuffix("Increasing").removesuffix("Rel")


def test_the_recipe_is_read_as_timm_reads_it():
    ours, timm = RandAugment.parse(RECIPE), theirs(RECIPE)
    assert [short(op.name) for op in timm.ops] == list(OPERATIONS)
    assert timm.choice_weights is None
    assert ours.layers == timm.num_layers
    for op in timm.ops:
        assert (op.prob, op.magnitude, op.magnitude_std) == (
            ours.probability,
            ours.magnitude,
            ours.std,
        )
        assert op.magnitude_max is None


@pytest.mark.parametrize(
    "text", [RECIPE, "rand-m7-mstd1", "rand-m5-mstd101-inc1", "rand-m12-mmax14"]
)
def test_each_operation_gives_timms_pixels(image, text):
    """Both draw chance, strength and sign in this order from Python's generator."""
    ours = RandAugment.parse(text, fill=FILL)
    picture = Image.fromarray(image)
    for op in theirs(text).ops:
        done = 0
        for seed in range(12):
            random.seed(seed)
            draw = random.Random(seed)
            if draw.random() > ours.probability:
                continue
            strength = ours._strength(draw)
            argument = ours.argument(short(op.name), strength, draw)
            if op.name.startswith("Posterize") and argument < 1:
                continue  # Pillow 13 refuses what timm asks for here
            expected = np.asarray(op(picture))
            result = np.asarray(ours.applied(picture, short(op.name), argument))
            np.testing.assert_array_equal(result, expected, err_msg=op.name)
            done += 1
        assert done > 2, op.name


def test_a_whole_call_is_timms(image, monkeypatch):
    ours, timm = RandAugment.parse(RECIPE, fill=FILL), theirs(RECIPE)
    for seed in range(30):
        draw = random.Random(seed)
        chosen = draw.choices(range(len(OPERATIONS)), k=2)
        random.seed(seed)
        random.choices(range(len(OPERATIONS)), k=2)
        operations = [timm.ops[i] for i in chosen]
        monkeypatch.setattr(np.random, "choice", MagicMock(return_value=operations))
        expected = np.asarray(timm(Image.fromarray(image)))
        result = ours(image, draw=random.Random(seed))
        np.testing.assert_array_equal(result, expected)


def test_distribution_of_operations_and_arguments(monkeypatch):
    """Chi-square of the operations' counts; quantiles of what they are done with."""
    calls = 6000
    draw = random.Random(0)
    recipe = RandAugment.parse(RECIPE)
    ours = {name: [] for name in OPERATIONS}
    for _ in range(calls):
        for name, argument in recipe.drawn(draw):
            ours[name].append(argument)
    timm = {name: [] for name in OPERATIONS}

    def record(name):
        return lambda picture, *arguments, **_: (
            timm[name].append(arguments[0] if arguments else 0.0) or picture
        )

    transform = theirs(RECIPE)
    for op in transform.ops:
        monkeypatch.setattr(op, "aug_fn", record(short(op.name)))
    random.seed(1)
    np.random.seed(1)
    for _ in range(calls):
        transform(None)
    counts = np.array([[len(side[name]) for name in OPERATIONS] for side in (ours, timm)])
    expected = calls * 2 * 0.5 / len(OPERATIONS)
    assert (((counts - expected) ** 2) / expected).sum(axis=1).max() < 36.1  # 14 degrees, p = 0.001
    for name in OPERATIONS:
        mine, other = (np.sort(side[name]) for side in (ours, timm))
        both = np.concatenate([mine, other])
        cumulated = (
            np.searchsorted(side, both, side="right") / len(side) for side in (mine, other)
        )
        distance = np.abs(np.subtract(*cumulated)).max()
        assert distance < 1.95 * np.sqrt(1 / len(mine) + 1 / len(other)), name  # KS, p = 0.001


def test_posterising_to_no_bits_is_black(image):
    picture = Image.fromarray(image)
    assert not np.asarray(RandAugment().applied(picture, "Posterize", 0)).any()
    full = np.asarray(RandAugment().applied(picture, "Posterize", 8))
    np.testing.assert_array_equal(full, image)


def test_nothing_drawn_leaves_the_image(image):
    assert RandAugment.parse("rand-m9-p0")(image, draw=random.Random(0)) is image


def test_other_generators_are_not_touched(image):
    random.seed(5)
    np.random.seed(5)
    states = random.getstate(), np.random.get_state()[1].copy()
    for seed in range(20):
        RandAugment.parse(RECIPE)(image, draw=random.Random(seed))
    assert random.getstate() == states[0]
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])


@pytest.mark.parametrize("text", ["rand-m9-tweights", "augmix-m5", "rand-m9-", "m9", "rand-x3"])
def test_what_is_not_understood(text):
    with pytest.raises(UserError, match=r"data\.rand_augment: .* is not understood"):
        RandAugment.parse(text)


def test_the_names_are_timms():
    for name in OPERATIONS:
        variants = (name, f"{name}Increasing", f"{name}Rel")
        assert any(_known(variant) for variant in variants), name


def _known(name):
    try:
        AugmentOp(name)
    except KeyError:
        return False
    return True
