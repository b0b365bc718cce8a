"""The scores against mmsegmentation's, against a sum by hand, and over two processes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gmf_platform.evaluation import MeanIoU

FIXTURE = Path(__file__).parents[1] / "fixtures" / "mean_iou.json"


def rolled_pairs(root):
    """Prediction and truth of each validation image, by the rule in the fixture."""
    for path in sorted((root / "annotations" / "validation").glob("*.png")):
        truth = np.array(Image.open(path)).astype(np.uint8) - np.uint8(1)
        guess = np.roll(np.where(truth == 255, 0, truth), (5, 7), axis=(0, 1))
        yield torch.from_numpy(guess), torch.from_numpy(truth)


def filled(values):
    return torch.tensor([float("nan") if value is None else value for value in values]).double()


@pytest.mark.data
@pytest.mark.parametrize(("name", "num_classes"), [("ade20k_mini", 150), ("camvid_mini", 11)])
def test_equals_mmsegmentation(real_data, name, num_classes):
    expected = json.loads(FIXTURE.read_text())[name]
    metric = MeanIoU(num_classes)
    for guess, truth in rolled_pairs(real_data(name)):
        metric.update(guess, truth)
    scores = metric.compute()
    assert scores.aacc == pytest.approx(expected["aAcc"], abs=1e-6)
    assert scores.miou == pytest.approx(expected["mIoU"], abs=1e-6)
    assert scores.macc == pytest.approx(expected["mAcc"], abs=1e-6)
    for ours, theirs in ((scores.class_iou, "IoU"), (scores.class_accuracy, "Acc")):
        torch.testing.assert_close(
            filled(ours), filled(expected[theirs]), atol=1e-6, rtol=0, equal_nan=True
        )


# Four classes: 2 occurs nowhere, 3 is predicted but never true; one pixel is ignored.
TRUTH = torch.tensor([[0, 0, 0, 1], [1, 1, 1, 255]], dtype=torch.uint8)
GUESS = torch.tensor([[0, 0, 1, 1], [1, 1, 3, 3]], dtype=torch.uint8)


def test_by_hand():
    metric = MeanIoU(4)
    metric.update(GUESS, TRUTH)
    scores = metric.compute()
    assert scores.class_iou[:2] == pytest.approx([2 / 3, 3 / 5])
    assert scores.class_iou[3] == 0  # predicted, so it counts
    assert np.isnan(scores.class_iou[2])
    assert scores.class_accuracy[:2] == pytest.approx([2 / 3, 3 / 4])
    assert np.isnan(scores.class_accuracy[2:]).all()  # no true pixel to be right on
    assert scores.miou == pytest.approx((2 / 3 + 3 / 5 + 0) / 3)
    assert scores.macc == pytest.approx((2 / 3 + 3 / 4) / 2)
    assert scores.aacc == pytest.approx(5 / 7)


def test_ignored_pixels_do_not_count():
    plain, with_ignored = MeanIoU(4), MeanIoU(4)
    plain.update(GUESS[TRUTH != 255], TRUTH[TRUTH != 255])
    for wrong in range(4):
        guess = torch.where(TRUTH == 255, wrong, GUESS)
        with_ignored.update(guess, TRUTH)
    assert torch.equal(with_ignored.confusion, 4 * plain.confusion)


def test_ignored_image_adds_nothing():
    metric = MeanIoU(3)
    metric.update(torch.zeros(2, 2, dtype=torch.uint8), torch.full((2, 2), 255))
    assert metric.confusion.sum() == 0
    assert np.isnan(metric.compute().miou)


def test_large_counts_stay_exact():
    metric = MeanIoU(2)
    metric.update(torch.tensor([1]), torch.tensor([0]))
    metric.confusion += 2**40 * torch.eye(2, dtype=torch.int64)  # more than float32 can count
    assert metric.compute().class_iou[0] == 2**40 / (2**40 + 1)


def test_table_names_classes_and_marks_absent_ones():
    metric = MeanIoU(4)
    metric.update(GUESS, TRUTH)
    lines = metric.compute().table(["wall", "sky", "moon", "a long name"]).splitlines()
    assert lines[1].split() == ["wall", "66.67", "66.67"]
    assert lines[3].split() == ["moon", "-", "-"]
    assert lines[4].split()[-2:] == ["0.00", "-"]
    assert lines[5].split() == ["mean", "42.22", "70.83"]
    assert len({len(line) for line in lines}) == 1


def random_images():
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        truth, guess = torch.randint(0, 6, (2, 20, 30), generator=generator, dtype=torch.uint8)
        yield guess, torch.where(truth == 5, 255, truth)


def scores_of_share(rank, world_size):
    metric = MeanIoU(6)
    for guess, truth in list(random_images())[rank::world_size]:
        metric.update(guess, truth)
    return metric.compute()


def test_two_processes_equal_one(run_processes):
    expected = scores_of_share(0, 1)
    for scores in run_processes(lambda rank: scores_of_share(rank, 2), 2):
        assert repr(scores) == repr(expected)  # repr: exact, and NaN equals NaN
