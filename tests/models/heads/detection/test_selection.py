"""From scored boxes to detections, by hand."""

import torch

from gmf_platform.models.heads.detection.selection import Selection, suppress

BOXES = torch.tensor(
    [[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60], [0, 0, 10, 8], [7, 7, 7, 9]]
)
SCORES = torch.tensor([0.5, 0.9, 0.3, 0.6, 0.99])


def test_the_best_of_a_class_suppresses_those_that_overlap_it():
    found = Selection()(BOXES, SCORES, torch.tensor([1, 1, 1, 1, 1]))
    assert torch.equal(found.boxes, BOXES[[1, 2]])
    assert torch.equal(found.scores, SCORES[[1, 2]])
    assert found.masks is None


def test_classes_do_not_suppress_each_other():
    found = Selection()(BOXES, SCORES, torch.tensor([1, 1, 1, 2, 1]))
    assert torch.equal(found.boxes, BOXES[[1, 3, 2]])
    assert found.labels.tolist() == [1, 2, 1]


def test_number_and_overlap():
    labels = torch.ones(5, dtype=torch.int64)
    assert len(Selection(max_overlap=0.95, number=100)(BOXES, SCORES, labels).boxes) == 4
    found = Selection(max_overlap=0.95, number=2)(BOXES, SCORES, labels)
    assert torch.equal(found.scores, torch.tensor([0.9, 0.6]))


def test_empty_boxes_are_dropped():
    assert suppress(BOXES[4:], SCORES[4:], torch.zeros(1), max_overlap=0.5, number=9).tolist() == []


def test_scores_may_be_logits():
    kept = suppress(
        BOXES[:3], torch.tensor([-3.0, -1, 2]), torch.zeros(3), max_overlap=0.5, number=9
    )
    assert kept.tolist() == [2, 1]
