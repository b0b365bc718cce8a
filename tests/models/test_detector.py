"""The detector with each of its heads: sizes, gradients, precision, processes."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from gmf_platform.models.backbones import GroupMixFormer
from gmf_platform.models.detector import Detector
from gmf_platform.models.heads import CascadeMaskRCNN, FasterRCNN, MaskRCNN, RetinaNet
from gmf_platform.models.heads.cascade_mask_rcnn import RPN_SETTINGS as CASCADE_RPN_SETTINGS
from gmf_platform.models.heads.detection import RPNSettings

HEADS = {"retinanet": RetinaNet, "faster": FasterRCNN, "mask": MaskRCNN, "cascade": CascadeMaskRCNN}
# Fewer regions than in training, for speed.
FEW = {"candidates_train": 300, "candidates_test": 100, "proposals_train": 80, "proposals_test": 40}
SMALL = {
    "faster": {"width": 32, "rpn": RPNSettings(**FEW)},
    "mask": {"width": 32, "rpn": RPNSettings(**FEW)},
    "cascade": {"width": 32, "rpn": replace(CASCADE_RPN_SETTINGS, **FEW)},
}
CLASSES = 5
SHAPE = (128, 192)
SIZES = torch.tensor([[128, 192], [100, 180]])
WIDTHS = (10, 10, 20, 20)


def make_detector(head):
    torch.manual_seed(0)
    backbone = GroupMixFormer(embedding_dims=WIDTHS, depths=(1,) * 4, drop_path=0.0)
    return Detector(backbone, HEADS[head](WIDTHS, CLASSES, channels=16, **SMALL.get(head, {})))


@pytest.fixture(params=HEADS)
def name(request):
    return request.param


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, *SHAPE), generator=generator, dtype=torch.uint8)


def targets_of(numbers):
    """Truth of images with so many objects; masks fill the upper half of boxes."""
    targets = []
    for seed, number in enumerate(numbers):
        generator = torch.Generator().manual_seed(seed)
        size = 15 + 65 * torch.rand(number, 2, generator=generator)
        corner = torch.rand(number, 2, generator=generator) * (torch.tensor([180, 100]) - size)
        boxes = torch.cat([corner, corner + size], dim=1)
        masks = torch.zeros(number, *SHAPE, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1 : (y1 + y2) // 2, x1:x2] = 1
        labels = torch.randint(0, CLASSES, (number,), generator=generator)
        targets.append({"boxes": boxes, "labels": labels, "masks": masks, "seed": seed})
    return targets


# RetinaNet, Mask R-CNN and Cascade Mask R-CNN with 80 classes, in millions of parameters.
MILLIONS = {
    "mobile": (14.9, 25.6, 63.4),
    "tiny": (20.2, 30.8, 68.6),
    "small": (31.9, 42.2, 80.1),
    "base": (55.5, 65.6, 103.4),
    "large": (81.6, 91.6, 129.5),
}


@pytest.mark.parametrize("variant", MILLIONS)
def test_number_of_parameters(variant):
    """Of head formulas that reproduce the published sizes of Swin's and MPViT's detectors."""
    with torch.device("meta"):
        backbone = GroupMixFormer(variant)
        for head, millions in zip(
            (RetinaNet, MaskRCNN, CascadeMaskRCNN), MILLIONS[variant], strict=True
        ):
            model = Detector(backbone, head(backbone.channels, 80))
            assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(
                millions, rel=0.01
            )


@pytest.mark.parametrize("numbers", [(0, 0), (0, 3), (4, 2)])
def test_every_parameter_gets_a_gradient(name, images, numbers):
    model = make_detector(name)
    model.eval()
    with torch.no_grad():
        model(images, SIZES)
    losses = model.train()(images, SIZES, targets_of(numbers))
    assert all(loss.isfinite() and loss.shape == () for loss in losses.values())
    sum(losses.values()).backward()
    gradients = {key: p.grad for key, p in model.named_parameters()}
    assert [
        key for key, grad in gradients.items() if grad is None or not grad.isfinite().all()
    ] == []
    if numbers == (4, 2):
        # No anchor of the cascade's coarse levels lies inside images as small as these.
        zero = [key for key, grad in gradients.items() if not grad.any()]
        assert [key for key in zero if not (name == "cascade" and "neck" in key)] == []
    else:
        assert all(loss > 0 for key, loss in losses.items() if "class" in key)


@torch.no_grad()
def test_detections(name, images):
    found = make_detector(name).eval()(images, SIZES)
    assert len(found) == 2
    for detections, (height, width) in zip(found, SIZES.tolist(), strict=True):
        number = len(detections.boxes)
        assert number <= 100
        assert detections.boxes.dtype == detections.scores.dtype == torch.float32
        assert detections.labels.dtype == torch.int64
        assert (detections.scores.diff() <= 0).all()
        if number:
            assert detections.boxes.min() >= 0
            assert (detections.boxes[:, 2:].amax(0) <= torch.tensor([width, height])).all()
            assert 0 <= detections.labels.min() <= detections.labels.max() < CLASSES
        if name in ("mask", "cascade"):
            assert detections.masks.shape == (number, 28, 28)
            assert detections.masks.dtype == torch.float32
        else:
            assert detections.masks is None


@torch.no_grad()
def test_training_mode_without_targets_and_evaluation_with_them_detect(name, images):
    model = make_detector(name)
    assert isinstance(model.train()(images, SIZES), list)
    assert isinstance(model.eval()(images, SIZES, targets_of((1, 1))), list)


@torch.no_grad()
def test_what_stands_in_the_padding_does_not_matter(images):
    model = make_detector("faster").eval()
    other = images.clone()
    other[1, :, 100:] = 255
    other[1, :, :, 180:] = 255
    a, b = model(images, SIZES)[1], model(other, SIZES)[1]
    assert len(a.boxes)
    assert torch.equal(a.boxes, b.boxes)


@torch.no_grad()
def test_losses_are_drawn_by_the_targets_seeds(images):
    model = make_detector("faster").train()

    def losses(seed):
        torch.manual_seed(seed)  # the global generator must play no part
        return model(
            images,
            SIZES,
            [target | {"seed": seed + i} for i, target in enumerate(targets_of((4, 2)))],
        )

    torch.manual_seed(1)
    first, torch_state = losses(5), torch.get_rng_state()
    again = model(
        images, SIZES, [target | {"seed": 5 + i} for i, target in enumerate(targets_of((4, 2)))]
    )
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert first == again
    assert losses(6)["loss_rpn_class"] != first["loss_rpn_class"]


def test_bfloat16_computes_losses_in_float32(name, images):
    targets = targets_of((4, 2))
    exact = make_detector(name).train()(images, SIZES, targets)
    with torch.autocast("cpu", torch.bfloat16):
        losses = make_detector(name).train()(images, SIZES, targets)
    sum(losses.values()).backward()
    for key, loss in losses.items():
        assert loss.dtype == torch.float32
        if "class" in key:  # those of boxes depend on which few are drawn
            assert loss.item() == pytest.approx(exact[key].item(), rel=0.1), key
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        for found in make_detector(name).eval()(images, SIZES):
            assert found.boxes.dtype == found.scores.dtype == torch.float32


class Pools(torch.nn.Module):
    """A backbone that compiles fast."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 10, 1)

    def forward(self, images):
        return [F.avg_pool2d(self.conv(images), stride) for stride in (4, 8, 16, 32)]


def test_compiled_once_whatever_the_number_of_objects(images):
    model = Detector(Pools(), RetinaNet((10,) * 4, CLASSES, channels=16))
    expected = [model(images, SIZES, targets_of(n))["loss_class"] for n in ((4, 2), (0, 0), (1, 7))]
    names, graphs, made = list(model.state_dict()), [], []
    model.compile(backend=lambda graph, inputs: graphs.append(graph) or graph)
    for numbers, loss in zip(((4, 2), (0, 0), (1, 7)), expected, strict=True):
        torch.testing.assert_close(model(images, SIZES, targets_of(numbers))["loss_class"], loss)
        made.append(len(graphs))
    assert made[0] == made[-1] > 0
    assert list(model.state_dict()) == names


def test_two_processes_equal_one(name, images, run_processes):
    """The mean over processes of losses and of gradients, one image on each, one without object."""
    targets = targets_of((5, 0))

    def run(part):
        model = make_detector(name).double().train()
        # Gradients of float32 noise would hide a wrong divisor; normalising is float32 by contract.
        model.normalize.register_forward_hook(lambda module, args, x: x.double())
        losses = model(images[part], SIZES[part], targets[part])
        sum(losses.values()).backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
        return {key: loss.item() for key, loss in losses.items()}, gradients.numpy()

    whole, whole_gradient = run(slice(0, 2))
    (first, a), (second, b) = run_processes(lambda rank: run(slice(rank, rank + 1)), 2)
    for key, loss in whole.items():
        assert (first[key] + second[key]) / 2 == pytest.approx(loss, rel=1e-6), key
    gradient = (a + b) / 2
    assert abs(gradient - whole_gradient).max() < 1e-6 * abs(whole_gradient).max()
