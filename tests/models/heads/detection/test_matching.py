"""Matching against torchvision's matcher and by hand; sampling."""

import pytest
import torch
from torchvision.models.detection._utils import Matcher as TheirMatcher
from torchvision.ops import box_iou

from gmf_platform.errors import UserError
from gmf_platform.models.heads.detection import matching
from gmf_platform.models.heads.detection.matching import (
    IGNORED,
    NEGATIVE,
    Matcher,
    Sampler,
    match_anchors,
    region_generator,
)


@pytest.mark.parametrize("chunk", [4_000_000, 700])
@pytest.mark.parametrize("low_quality", [True, False])
def test_equals_torchvision(random_boxes, monkeypatch, low_quality, chunk):
    monkeypatch.setattr(matching, "PAIRS_AT_ONCE", chunk)
    boxes, truths = random_boxes(500, seed=1), random_boxes(9, seed=2)
    expected = TheirMatcher(0.5, 0.4, low_quality)(box_iou(truths, boxes))
    ours = Matcher(0.5, 0.4, 0.0 if low_quality else None, reassign=False)(boxes, truths)
    assert torch.equal(ours, expected)
    assert {IGNORED, NEGATIVE} < set(ours.tolist())


BOX = torch.tensor([0.0, 0, 10, 10])
# Overlaps with BOX: 0.9, 0.5, 0.35, 0.2.
BOXES = torch.stack([BOX * torch.tensor([1, 1, 1, part]) for part in (0.9, 0.5, 0.35, 0.2)])


def test_thresholds_by_hand():
    matches = Matcher(positive=0.5, negative=0.3)(BOXES, BOX[None])
    assert matches.tolist() == [0, 0, IGNORED, NEGATIVE]


@pytest.mark.parametrize(
    ("low_quality", "expected"), [(0.3, 1), (0.45, NEGATIVE), (None, NEGATIVE)]
)
def test_a_truth_takes_its_nearest_if_near_enough(low_quality, expected):
    far = torch.tensor([[50.0, 0, 60, 10], [0, 0, 10, 10]])
    boxes = torch.tensor([[50.0, 0, 60, 4], [50, 6, 60, 10], [0, 0, 10, 10]])  # 0.4, 0.4, 1
    matches = Matcher(0.7, 0.5, low_quality)(boxes, far.flip(0))
    assert matches.tolist() == [expected, expected, 0]


@pytest.mark.parametrize(("reassign", "expected"), [(True, 1), (False, 0)])
def test_who_gets_a_box_that_is_taken(reassign, expected):
    """The box overlaps the first truth by 0.9 and the second by 0.5, for which it is nearest."""
    truths = torch.stack([BOXES[0], BOXES[1]])
    matches = Matcher(0.5, 0.4, 0.3, reassign=reassign)(BOX[None], truths)
    assert matches.tolist() == [expected]


def test_a_truth_that_overlaps_nothing_takes_nothing():
    matches = Matcher(0.5, 0.4, 0.0)(BOXES, torch.tensor([[90.0, 90, 99, 99]]))
    assert matches.tolist() == [NEGATIVE] * 4


@pytest.mark.parametrize(("boxes", "truths"), [(4, 0), (0, 4), (0, 0)])
def test_nothing_to_match(random_boxes, boxes, truths):
    matches = Matcher(0.5, 0.4, 0.0)(random_boxes(boxes, seed=0), random_boxes(truths, seed=0))
    assert matches.dtype == torch.int64
    assert matches.tolist() == [NEGATIVE] * boxes


def test_anchors_in_padding_are_ignored():
    anchors = torch.cat([BOXES, BOX[None] + 100])
    matches = match_anchors(Matcher(0.5, 0.3), anchors, BOX[None], torch.tensor([20, 20]))
    assert matches.tolist() == [0, 0, IGNORED, NEGATIVE, IGNORED]


def generator(seed=5):
    return region_generator({"seed": seed})


MATCHES = torch.tensor([NEGATIVE] * 50 + [IGNORED] * 10 + [0, 1, 2] * 10)


@pytest.mark.parametrize(
    ("number", "fraction", "positives", "negatives"),
    [(20, 0.25, 5, 15), (100, 0.5, 30, 50), (40, 1.0, 30, 10), (8, 0.0, 0, 8)],
)
def test_numbers_drawn(number, fraction, positives, negatives):
    positive, negative = Sampler(number, fraction)(MATCHES, generator())
    assert len(positive.unique()) == len(positive) == positives
    assert len(negative.unique()) == len(negative) == negatives
    assert (MATCHES[positive] >= 0).all()
    assert (MATCHES[negative] == NEGATIVE).all()


def test_drawn_by_the_seed_alone():
    def draw(seed):
        return torch.cat(Sampler(20, 0.25)(MATCHES, generator(seed))).tolist()

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_drawn_evenly():
    counts = torch.zeros(len(MATCHES))
    shared = generator()
    for _ in range(400):
        counts[torch.cat(Sampler(20, 0.25)(MATCHES, shared))] += 1
    assert counts[50:60].sum() == 0
    expected = torch.tensor([400 * 15 / 50] * 50 + [400 * 5 / 30] * 30)
    drawn = torch.cat([counts[:50], counts[60:]])
    assert ((drawn - expected).abs() < 5 * expected.sqrt()).all()


def test_a_box_cannot_be_both():
    Matcher(positive=0.5, negative=0.5)
    with pytest.raises(
        UserError, match=r"matcher\.positive: 0\.3 is below matcher\.negative, 0\.4"
    ):
        Matcher(positive=0.3, negative=0.4)
