"""Against timm: the same pictures and targets for the same draws, and the same draws in the long run."""

import math
import random

import numpy as np
import pytest
import torch
from scipy import stats
from timm.data import Mixup
from timm.data.mixup import rand_bbox
from timm.data.random_erasing import RandomErasing

from gmf_platform.errors import UserError
from gmf_platform.models.batch_augment import BatchAugment, BatchChange

SIZE = (24, 40)
CLASSES = 7
DRAWS = 4000
P_LEAST = 1e-3  # the seeds are fixed: a test either passes always, or never


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


def batch(count=6):
    return torch.randn(count, 3, *SIZE), torch.randint(CLASSES, (count,))


def change(*, mixed=(0, 0, 0, 0), own=1.0, erased=(), count=6):
    boxes = torch.zeros(count, 4, dtype=torch.int64)
    for i, box in enumerate(erased):
        boxes[i] = torch.tensor(box)
    height, width = SIZE
    area = (mixed[1] - mixed[0]) * (mixed[3] - mixed[2]) / (height * width)
    return BatchChange(torch.tensor(mixed), torch.tensor(own), 1 - (1 - own) * area, boxes)


class Fixed(Mixup):
    """timm's, with one draw."""

    def __init__(self, share, use_cutmix):
        super().__init__(num_classes=CLASSES, label_smoothing=0.1)
        self.drawn = share, use_cutmix

    def _params_per_batch(self):
        return self.drawn


def smoothed(targets):
    return 0.9 * targets + 0.1 / CLASSES


@pytest.mark.parametrize("share", [0.0, 0.137, 0.5, 0.981, 1.0])
def test_mixup_equals_timm(share):
    images, labels = batch()
    ours = change(mixed=(0, SIZE[0], 0, SIZE[1]), own=share)
    theirs = Fixed(share, False)(images.clone(), labels)
    torch.testing.assert_close(ours.of_images(images), theirs[0], atol=1e-6, rtol=0)
    mixed = smoothed(ours.of_labels(labels, CLASSES))
    torch.testing.assert_close(mixed, theirs[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("seed", range(6))
def test_cutmix_equals_timm(seed):
    images, labels = batch()
    share = np.random.default_rng(seed).uniform(0.05, 0.95)
    np.random.seed(seed)
    top, bottom, left, right = (int(x) for x in rand_bbox(images.shape, share))
    np.random.seed(seed)
    theirs = Fixed(share, True)(images.clone(), labels)
    ours = change(mixed=(top, bottom, left, right), own=0.0)
    assert torch.equal(ours.of_images(images), theirs[0])
    mixed = smoothed(ours.of_labels(labels, CLASSES))
    torch.testing.assert_close(mixed, theirs[1], atol=1e-6, rtol=0)


def test_a_change_of_nothing():
    images, labels = batch()
    assert torch.equal(change().of_images(images), images)
    targets = change().of_labels(labels, CLASSES)
    assert torch.equal(targets, torch.nn.functional.one_hot(labels, CLASSES).float())


def test_the_middle_image_of_an_odd_batch_mixes_with_itself():
    images, labels = batch(5)
    half = change(mixed=(0, SIZE[0], 0, SIZE[1]), own=0.5, count=5)
    mixed, targets = half.of_images(images), half.of_labels(labels, CLASSES)
    torch.testing.assert_close(mixed[2], images[2])
    assert targets[2, labels[2]] == 1
    torch.testing.assert_close(mixed[0], (images[0] + images[4]) / 2)


def test_erasing_fills_the_box_with_normal_noise():
    images = torch.full((4, 3, *SIZE), 9.0)
    boxes = [(0, SIZE[0], 0, SIZE[1]), (3, 9, 5, 30)]
    erased = change(erased=boxes, count=4).of_images(images)
    assert stats.kstest(erased[0].flatten().numpy(), "norm").pvalue > P_LEAST
    box = erased[1, :, 3:9, 5:30]
    assert (box != 9).all()
    assert len(box.unique()) == box.numel()  # each pixel and channel by itself
    erased[1, :, 3:9, 5:30] = 9
    assert torch.equal(erased[1:], images[1:])


def test_erasing_comes_before_mixing():
    """As in timm, where erasing is the last transform and mixup comes behind the loader."""
    images = torch.zeros(2, 3, *SIZE)
    whole = (0, SIZE[0], 0, SIZE[1])
    mixed = change(mixed=whole, own=0.75, erased=[whole], count=2).of_images(images)
    assert mixed[0].std().item() == pytest.approx(0.75, rel=0.05)
    torch.testing.assert_close(mixed[1], mixed[0] / 3)


# Draws


def drawn_mixing(count=DRAWS, size=SIZE, **settings):
    """Own share overall, top, bottom, left, right of many batches."""
    augment = BatchAugment(erase_probability=0.0, **settings)
    images = torch.empty(2, 3, *size)
    changes = [augment.draw(images) for _ in range(count)]
    return np.array([[c.own_overall, *c.mixed.tolist()] for c in changes])


def same(ours, theirs):
    return stats.ks_2samp(ours, theirs).pvalue > P_LEAST


def whole(drawn):
    """Which of the draws are mixup's: of the whole image."""
    return (drawn[:, 1:] == (0, SIZE[0], 0, SIZE[1])).all(1)


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0])
def test_shares_of_mixup_are_timms(alpha):
    ours = drawn_mixing(mixup_alpha=alpha, cutmix_alpha=0.0)
    theirs = [np.random.beta(alpha, alpha) for _ in range(DRAWS)]
    assert whole(ours).all()
    assert same(ours[:, 0], theirs)


def test_boxes_of_cutmix_are_timms():
    ours = drawn_mixing(mixup_alpha=0.0, cutmix_alpha=1.0)
    shape = (2, 3, *SIZE)
    theirs = np.array([rand_bbox(shape, np.random.beta(1, 1)) for _ in range(DRAWS)])
    for i in range(4):
        assert same(ours[:, 1 + i], theirs[:, i])
    areas = (theirs[:, 1] - theirs[:, 0]) * (theirs[:, 3] - theirs[:, 2])
    assert same(ours[:, 0], 1 - areas / math.prod(SIZE))


@pytest.mark.parametrize("seed", range(20))
def test_a_box_of_cutmix_is_timms_for_the_same_centre(seed, monkeypatch):
    share, row, column = np.random.default_rng(seed).uniform(size=3)
    numbers = torch.tensor([0.0, 0.0, row, column], dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: numbers)
    monkeypatch.setattr("gmf_platform.models.batch_augment._beta", lambda _: share)
    ours = BatchAugment(mixup_alpha=0.0)._draw_mixing(*SIZE)
    centres = iter([int(row * SIZE[0]), int(column * SIZE[1])])
    monkeypatch.setattr(np.random, "randint", lambda *_, **__: next(centres))
    assert ours == (tuple(int(x) for x in rand_bbox((3, *SIZE), share)), 0.0)


def test_the_choice_between_them():
    ours = drawn_mixing(mix_probability=0.6, cutmix_probability=0.3)
    is_mixup = whole(ours)
    is_none = (ours[:, 1:] == 0).all(1)
    counts = [is_none.sum(), is_mixup.sum(), (~is_none & ~is_mixup).sum()]
    expected = DRAWS * np.array([0.4, 0.6 * 0.7, 0.6 * 0.3])
    assert stats.chisquare(counts, expected).pvalue > P_LEAST
    assert (ours[is_none, 0] == 1).all()


def test_shares_of_both_are_timms():
    theirs = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=CLASSES)
    images = torch.zeros(2, 1, *SIZE)
    overall = [theirs._mix_batch(images) for _ in range(DRAWS)]
    assert same(drawn_mixing()[:, 0], overall)


def test_nothing_is_mixed_with_both_switched_off():
    ours = drawn_mixing(20, mixup_alpha=0.0, cutmix_alpha=0.0)
    assert (ours == (1, 0, 0, 0, 0)).all()


def their_boxes(size, count):
    """Boxes that timm erases, found by what it leaves of ones."""
    erase = RandomErasing(probability=1.0, mode="pixel", device="cpu", max_aspect=1 / 0.3)
    boxes = []
    for _ in range(count):
        image = torch.ones(1, *size)
        erase(image)
        rows, columns = (image[0] != 1).nonzero().unbind(1)
        ends = (x for y in (rows, columns) for x in (y.min(), y.max() + 1))
        boxes.append([int(x) for x in ends] if len(rows) else [0] * 4)
    return np.array(boxes)


@pytest.mark.parametrize("size", [(32, 32), (20, 64)])
def test_erased_boxes_are_timms(size):
    augment = BatchAugment(erase_probability=1.0)
    ours = augment.draw(torch.empty(DRAWS, 3, *size)).erased.numpy()
    theirs = their_boxes(size, DRAWS)
    assert not (ours[:, 1::2] <= ours[:, ::2]).any()
    assert (ours[:, 1] <= size[0]).all()
    assert (ours[:, 3] <= size[1]).all()
    high, wide = (boxes[:, 1] - boxes[:, 0] for boxes in (ours, ours[:, 2:]))
    their_high, their_wide = theirs[:, 1] - theirs[:, 0], theirs[:, 3] - theirs[:, 2]
    for a, b in (
        (high * wide, their_high * their_wide),
        (high / wide, their_high / their_wide),
        (ours[:, 0], theirs[:, 0]),
        (ours[:, 2], theirs[:, 2]),
    ):
        assert same(a, b)


def test_an_image_is_erased_with_the_probability():
    erased = BatchAugment().draw(torch.empty(DRAWS, 3, *SIZE)).erased.any(1)
    assert stats.binomtest(int(erased.sum()), DRAWS, 0.25).pvalue > P_LEAST
    assert not BatchAugment(erase_probability=0.0).draw(torch.empty(50, 3, *SIZE)).erased.any()


def test_a_box_larger_than_the_image_is_not_erased():
    long = BatchAugment(erase_probability=1.0, erase_area=(0.9, 0.9), erase_aspect=(9.0, 9.0))
    assert not long.draw(torch.empty(8, 3, *SIZE)).erased.any()


def test_draws_are_torchs_generators():
    images, _ = batch()

    def drawn(seed):
        torch.manual_seed(seed)
        return BatchAugment(erase_probability=1.0).draw(images).of_images(images)

    first = drawn(3)
    np.random.seed(9)
    random.seed(9)
    assert torch.equal(first, drawn(3))
    assert not torch.equal(first, drawn(4))


def test_memory_format_is_kept():
    images = batch()[0].to(memory_format=torch.channels_last)
    changed = BatchAugment().draw(images).of_images(images)
    assert changed.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mixup_alpha", -0.1),
        ("cutmix_alpha", -1.0),
        ("mix_probability", 1.5),
        ("erase_probability", -0.5),
        ("erase_area", (0.5, 0.2)),
        ("erase_area", (0.5, 1.2)),
        ("erase_aspect", (0.0, 2.0)),
    ],
)
def test_numbers_out_of_range(name, value):
    with pytest.raises(UserError, match=rf"model\.batch_augment\.{name}: .* must be"):
        BatchAugment(**{name: value})
