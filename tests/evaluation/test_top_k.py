"""Against plain counting, timm's accuracy, and one process against several."""

import math

import numpy as np
import pytest
import torch
from timm.utils import accuracy
from torch.nn import functional as F
from torch.utils.tensorboard.summary import compute_curve

from gmf_platform.evaluation import TopK, most_probable
from gmf_platform.evaluation.precision_recall import THRESHOLDS


def batches(num_classes, sizes=(8, 8, 8, 8, 5), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            3 * torch.randn(size, num_classes, generator=generator),
            torch.randint(num_classes, (size,), generator=generator),
        )
        for size in sizes
    ]


def scored(some, num_classes):
    metric = TopK(num_classes)
    for logits, labels in some:
        metric.update(logits, labels)
    return metric.compute()


@pytest.mark.parametrize("num_classes", [6, 20, 150])
def test_equals_timm_and_plain_counting(num_classes):
    some = batches(num_classes)
    logits, labels = (torch.cat(parts) for parts in zip(*some, strict=True))
    scores = scored(some, num_classes)
    top1, top5 = accuracy(logits, labels, topk=(1, 5))
    assert scores.top1 == pytest.approx(top1.item() / 100)
    assert scores.top5 == pytest.approx(top5.item() / 100)
    assert scores.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)
    best = logits.argmax(1)
    by_class = [(best[labels == k] == k).double().mean() for k in labels.unique()]
    assert scores.macc == pytest.approx(torch.stack(by_class).mean().item())
    assert scores.images == [int((labels == k).sum()) for k in range(num_classes)]
    for truth in range(num_classes):
        for guess in range(num_classes):
            count = int(((labels == truth) & (best == guess)).sum())
            assert scores.confusion[truth, guess] == count


def test_curves_are_tensorboards():
    """Of each class, over the probabilities of all images."""
    some = batches(6)
    logits, labels = (torch.cat(parts) for parts in zip(*some, strict=True))
    report = scored(some, 6).report()
    curves = report.curves["probability"]
    assert list(curves) == torch.bincount(labels).argsort(descending=True, stable=True).tolist()
    for label, curve in curves.items():
        scores = logits.softmax(1)[:, label].numpy()
        expected = compute_curve((labels == label).numpy(), scores, num_thresholds=THRESHOLDS)
        np.testing.assert_allclose(np.stack(curve), expected, atol=1e-6)


def test_a_report_on_classes():
    """The third does not occur."""
    logits = torch.tensor([[9.0, 0, 0], [0, 9, 0], [9, 0, 0]])
    report = scored([(logits, torch.tensor([0, 0, 1]))], 3).report()
    assert list(report.counts) == [2, 1, 0]
    assert report.scores["top1"][:2] == [0.5, 0.0]
    assert math.isnan(report.scores["top1"][2])
    assert report.confusion.tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0]]


def test_what_is_not_counted():
    """Neither of very many classes, nor in a table that nobody reads."""
    scores = scored(batches(1001), 1001)
    assert scores.confusion is scores.reached is None
    assert scores.report().scores["top1"] == pytest.approx(
        [r / c if c else math.nan for r, c in zip(scores.right, scores.images, strict=True)],
        nan_ok=True,
    )
    assert not scores.is_confusion_written
    assert not scored(batches(101), 101).is_confusion_written
    assert scored(batches(100), 100).is_confusion_written


def test_a_network_that_has_diverged_is_scored():
    scores = scored([(torch.full((4, 6), math.nan), torch.arange(4))], 6)
    assert math.isnan(scores.loss)
    assert scores.reached.sum() == 4 * 6


@pytest.mark.parametrize("num_classes", [2, 5])
def test_top5_of_five_classes_is_not_told(num_classes):
    scores = scored(batches(num_classes), num_classes)
    assert scores.top5 is None
    assert 0 < scores.top1 < 1


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("num_classes", [7, 120])
def test_processes_equal_one_to_the_last_digit(world_size, num_classes, run_processes):
    """37 images in batches that neither 2 nor 3 divide; one batch has a loss of another size."""
    some = batches(num_classes)
    some[3] = (1e3 * some[3][0], some[3][1])
    alone = scored(some, num_classes)
    results = run_processes(lambda rank: scored(some[rank::world_size], num_classes), world_size)
    for scores in results:
        for name in ("top1", "top5", "macc", "loss", "images", "right"):
            assert getattr(scores, name) == getattr(alone, name), name
        assert torch.equal(scores.confusion, alone.confusion)
        assert torch.equal(scores.reached, alone.reached)


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_a_process_without_images(run_processes):
    some = batches(7, sizes=(3,))
    alone = scored(some, 7)
    for scores in run_processes(lambda rank: scored(some[rank:], 7), 2):
        assert (scores.top1, scores.loss) == (alone.top1, alone.loss)


def test_a_loss_without_bound_is_told():
    logits, labels = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])
    logits[1, 1] = float("nan")
    scores = scored([(logits, labels)], 3)
    assert math.isnan(scores.loss)
    assert scores.images == [2, 1, 1]


def test_begins_anew():
    metric = TopK(7)
    for logits, labels in batches(7):
        metric.update(logits, labels)
    metric.compute()
    metric.reset()
    assert metric.images.sum() == metric.loss == metric.confusion.sum() == 0


def test_table_has_the_worst_classes():
    names = ["ant", "bee", "caterpillar", "dragonfly"]
    labels = torch.tensor([0] * 4 + [1] * 2 + [2] * 5)
    guesses = torch.tensor([0, 0, 0, 1, 1, 1, 0, 0, 1, 2, 2])
    lines = scored([(F.one_hot(guesses, 4).float(), labels)], 4).table(names).splitlines()
    assert lines == [
        "class        images   top-1  most often taken for",
        "caterpillar       5   40.00  ant (2)",
        "ant               4   75.00  bee (1)",
        "bee               2  100.00",
    ]


def test_table_of_many_classes_is_cut():
    scores = scored(batches(150, sizes=(3000,)), 150)
    lines = scores.table([f"class {i}" for i in range(150)]).splitlines()
    assert len(lines) == 22
    assert lines[-1] == "... and 130 better ones"
    shares = [float(line.split()[3]) for line in lines[1:-1]]
    assert shares == sorted(shares)


def test_most_probable():
    logits = torch.tensor([[0.0, 2.0, 1.0], [5.0, 0.0, 0.0]]).bfloat16()
    first, second = most_probable(logits, count=2)
    assert first.labels.tolist() == [1, 2]
    expected = logits[0].float().softmax(0)
    assert first.probabilities.tolist() == pytest.approx([expected[1].item(), expected[2].item()])
    assert second.named(["a", "b", "c"])[0] == ("a", pytest.approx(0.98670, abs=1e-4))
    assert len(most_probable(logits)[0].labels) == 3  # all there are


def test_confusion_as_a_table():
    metric = TopK(3)
    logits = torch.eye(3)[[0, 1, 1, 2]]  # what is predicted
    metric.update(logits, torch.tensor([0, 0, 1, 2]))
    rows = metric.compute().confusion_csv(["cat", "dog, small", "owl"]).splitlines()
    assert rows[0] == 'true \\ predicted,cat,"dog, small",owl'
    assert rows[1:] == ["cat,1,1,0", '"dog, small",0,1,0', "owl,0,0,1"]
