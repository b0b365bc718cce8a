import pytest
import torch
from torch import nn

from gmf_platform.deploy.agreement import difference
from gmf_platform.deploy.graphs import AdaptivePool, graph_of
from gmf_platform.errors import UserError

SHAPES = [(1, 64, 64), (2, 97, 130), (3, 128, 201)]


@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (5, 3), (19, 23)])
@pytest.mark.parametrize("cells", [1, 2, 3, 6])
def test_pooling_is_torchs(shape, cells):
    x = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(AdaptivePool(cells)(x), nn.AdaptiveAvgPool2d(cells)(x))


def images_of(shape):
    """Coarse noise: of fine noise all places look alike."""
    number, height, width = shape
    noise = torch.rand(number, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    large = nn.functional.interpolate(noise, (height, width), mode="bicubic").clamp(0, 1)
    return (255 * large).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["classification", "segmentation", "detection"])
def test_a_graph_says_what_the_task_says(tasks, kind, shape):
    task, images = tasks(kind), images_of(shape)
    graph = graph_of(task.model)
    outputs = {n: x.numpy() for n, x in zip(graph.outputs, graph(images), strict=True)}
    assert graph.task == kind
    assert difference(task.model, outputs, images, task=kind, min_score=0.1) < 1e-4
    if kind == "detection":
        assert (outputs["count"] > 3).all()
        assert len({*outputs["labels"][0].tolist()}) > 1


@pytest.mark.parametrize("name", ["cls", "seg", "det"])
def test_a_graph_of_one_of_several_tasks(tasks, name):
    """It has that task's statistics, and nothing of the others."""
    task, images = tasks("joint"), images_of(SHAPES[1])
    graph = graph_of(task.task(name).model)
    outputs = {n: x.numpy() for n, x in zip(graph.outputs, graph(images), strict=True)}
    assert difference(task.task(name).model, outputs, images, task=graph.task, min_score=0.1) < 1e-4
    others = [graph_of(task.task(other).model) for other in ("cls", "seg", "det") if other != name]
    own = graph.state_dict()
    assert not [key for key in own if key.endswith(("_cls", "_seg", "_det"))]
    for other in others:
        differ = [
            key
            for key, value in other.state_dict().items()
            if key in own and "running_var" in key and not torch.equal(own[key], value)
        ]
        assert differ


def test_the_model_is_left_as_it_is(tasks):
    task = tasks("segmentation")
    before = [type(part) for part in task.model.modules()]
    graph_of(task.model)
    assert [type(part) for part in task.model.modules()] == before


def test_two_stages_cannot_be_exported(tasks):
    with pytest.raises(UserError, match="head MaskRCNN cannot be exported: its second stage"):
        graph_of(tasks("masks").model)
    with pytest.raises(UserError, match="nothing here exports a Linear"):
        graph_of(nn.Linear(2, 2))
