import numpy as np
import pytest
import torch

from gmf_platform.deploy.agreement import Disagreement, difference
from gmf_platform.deploy.graphs import graph_of


@pytest.fixture
def compare(tasks):
    """Compare a task with what its graph says, after a change of that."""

    def run(kind, change):
        task = tasks(kind)
        images = torch.randint(
            0, 256, (1, 70, 90, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
        graph = graph_of(task.model)
        outputs = {n: x.numpy().copy() for n, x in zip(graph.outputs, graph(images), strict=True)}
        change(outputs)
        return difference(task.model, outputs, images, task=kind, min_score=0.1)

    return run


def test_small_differences_pass(compare):
    def change(outputs):
        outputs["probabilities"][0, 0] += 5e-4

    assert compare("classification", change) == pytest.approx(5e-4, rel=0.01)


@pytest.mark.parametrize("value", [0.002, np.nan])
def test_another_probability(compare, value):
    def change(outputs):
        outputs["probabilities"][0, 0] += value

    with pytest.raises(Disagreement, match="a probability by"):
        compare("classification", change)


def test_another_label_of_one_pixel(compare):
    def change(outputs):
        outputs["labels"][0, 30, 40] = (outputs["labels"][0, 30, 40] + 1) % 7

    with pytest.raises(Disagreement, match="the probability of a pixel's label"):
        compare("segmentation", change)


def test_another_probability_of_one_pixel(compare):
    def change(outputs):
        outputs["probabilities"][0, 30, 40] -= 0.01

    with pytest.raises(Disagreement, match="a pixel's probability"):
        compare("segmentation", change)


def lose_one(outputs):
    outputs["count"] -= 1
    for name in ("boxes", "scores", "labels"):
        outputs[name] = outputs[name][:, 1:]


def invent_one(outputs):
    outputs["boxes"][0, 0] = 3.0


def move_one(outputs):
    outputs["boxes"][0, 0, 2] += 2


def rename_one(outputs):
    outputs["labels"][0, 0] = (outputs["labels"][0, 0] + 1) % 7


def rescore_one(outputs):
    outputs["scores"][0, 0] -= 0.01


@pytest.mark.parametrize("change", [lose_one, invent_one, move_one, rename_one, rescore_one])
def test_another_object(compare, change):
    with pytest.raises(Disagreement, match="an object of score"):
        compare("detection", change)
