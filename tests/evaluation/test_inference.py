"""Whole image, windows, scales and mirrors against plain re-implementations of their rules."""

from functools import partial

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from datamodules import ADE20K
from gmf_platform import evaluation
from gmf_platform.errors import UserError
from gmf_platform.evaluation import (
    SlidingWindow,
    View,
    WholeImage,
    inference,
    labels_by_mean_probability,
    segmentation,
)
from gmf_platform.models.backbones import GroupMixFormer
from gmf_platform.models.heads import SemanticFPN
from gmf_platform.models.segmenter import Segmenter
from gmf_platform.tasks import SegmentationTask

K, RATIOS = 5, [0.8, 1.0, 1.3]
SMALL = {"embedding_dims": (10, 10, 20, 20), "depths": (1, 1, 1, 1), "mlp_ratios": (2,) * 4}
Head = partial(SemanticFPN, fpn_channels=8, channels=8)
pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model():
    """A network with logits far enough apart that rounding decides no label."""
    torch.manual_seed(0)
    backbone = GroupMixFormer(drop_path=0.0, **SMALL)
    model = Segmenter(backbone, Head(backbone.channels, K))
    for _ in range(3):  # running statistics of its own
        model(torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8))
    torch.nn.init.normal_(model.decode_head.head.conv_seg.weight, std=3.0)
    return model.eval()


def picture(height, width, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def as_tensor(image):
    return torch.from_numpy(image).permute(2, 0, 1)


def resize(x, size):
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def whole(model, image):
    """Logits (1, K, H, W) of an image (3, H, W)."""
    return resize(model(image[None]).logits, image.shape[1:])


def slide(model, image, crop, stride):
    """Likewise, from windows one by one, each padded to the image and counted."""
    _, height, width = image.shape
    total, count = torch.zeros(1, K, height, width), torch.zeros(height, width)
    for i in range(max(height - crop + stride - 1, 0) // stride + 1):
        for j in range(max(width - crop + stride - 1, 0) // stride + 1):
            bottom, right = min(i * stride + crop, height), min(j * stride + crop, width)
            top, left = max(bottom - crop, 0), max(right - crop, 0)
            part = whole(model, image[:, top:bottom, left:right])
            total += F.pad(part, (left, width - right, top, height - bottom))
            count[top:bottom, left:right] += 1
    return total / count


def mean_probability(logits_of, image, scale, ratios, flips):
    """Of an image (H, W, 3), resized from the file for each ratio."""
    height, width = image.shape[:2]
    results = []
    for ratio in ratios:
        long, short = (int(edge * ratio) for edge in scale)
        factor = min(long / max(height, width), short / min(height, width))
        size = (int(width * factor + 0.5), int(height * factor + 0.5))
        version = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        for flip in flips:
            seen = as_tensor(np.ascontiguousarray(version[:, ::-1] if flip else version))
            p = resize(logits_of(seen), (height, width)).softmax(1)
            results.append(p.flip(3) if flip else p)
    return sum(results)[0] / len(results)


def agreement(a, b):
    return (a.long() == b.long()).float().mean().item()


def batch_of(image, original_size):
    return {
        "images": as_tensor(image)[None],
        "sizes": torch.tensor([image.shape[:2]]),
        "original_sizes": torch.tensor([original_size]),
    }


# One scale


def test_whole_image(model):
    batch = batch_of(picture(70, 101), (140, 203))
    (labels,) = WholeImage().labels(model, batch)
    expected = resize(whole(model, batch["images"][0]), (140, 203))[0].argmax(0)
    assert labels.dtype == torch.uint8
    assert len(expected.unique()) > 2
    assert torch.equal(labels.long(), expected)


CASES = {
    "several": ((150, 200), 80, 50),
    "one row": ((70, 200), 80, 80),
    "one window": ((70, 75), 80, 50),
    "exactly one": ((80, 80), 80, 50),
    "no overlap": ((160, 160), 80, 80),
    "far overlap": ((96, 97), 80, 7),
}


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize(("size", "crop", "stride"), CASES.values(), ids=CASES)
def test_sliding_window(model, size, crop, stride, chunk):
    image = as_tensor(picture(*size))
    strategy = SlidingWindow(crop=crop, stride=stride, batch_size=chunk)
    (view,) = strategy.views(model, image[None], torch.tensor([size]))
    expected = slide(model, image, crop, stride)[0]
    assert (view.logits - expected).norm() < 1e-5 * expected.norm()
    assert (view.padded_size, view.size, view.flipped) == (size, size, False)


def test_windows_are_taken_in_chunks(model):
    seen = []
    count = model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    batch = batch_of(picture(150, 200), (30, 40))
    (labels,) = SlidingWindow(crop=80, stride=50, batch_size=4).labels(model, batch)
    count.remove()
    assert seen == [4, 4, 4]  # 3 rows of 4
    assert labels.shape == (30, 40)


def test_batch_mates_change_nothing(model):
    """Two images of other sizes in one batch, against each by itself."""
    strategy = SlidingWindow(crop=80, stride=50)
    first, second = picture(70, 120), picture(90, 100, seed=1)
    images = torch.zeros(2, 3, 90, 120, dtype=torch.uint8)
    images[0, :, :70], images[1, :, :, :100] = as_tensor(first), as_tensor(second)
    sizes = torch.tensor([[70, 120], [90, 100]])
    together = {"images": images, "sizes": sizes, "original_sizes": 2 * sizes}
    for image, labels in zip((first, second), strategy.labels(model, together), strict=True):
        height, width = image.shape[:2]
        (alone,) = strategy.labels(model, batch_of(image, (2 * height, 2 * width)))
        assert agreement(labels, alone) > 0.9999


def test_reduced_precision_is_averaged_in_float32(model):
    image = as_tensor(picture(96, 120))[None]
    with torch.autocast("cpu", torch.bfloat16):
        (view,) = SlidingWindow(crop=80, stride=50).views(model, image, torch.tensor([[96, 120]]))
    assert view.logits.dtype == torch.float32


@pytest.mark.parametrize("settings", [{"stride": 600}, {"stride": 0}, {"batch_size": 0}])
def test_windows_that_make_no_sense(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        SlidingWindow(**settings)


# Several scales


def make_data(root, **settings):
    return ADE20K(str(root), scale=(320, 80), num_workers=0, **settings)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("strategy", "logits_of"),
    [
        (None, whole),
        (SlidingWindow(crop=70, stride=40), partial(slide, crop=70, stride=40)),
    ],
    ids=["whole", "windows"],
)
def test_scales_and_mirrors(model, sample_ade20k, strategy, logits_of, flip):
    data = make_data(sample_ade20k, eval_ratios=RATIOS)
    batch = next(iter(data.eval_loader("validation")))
    averaged = evaluation.TestTimeAugmentation(flip=flip, inference=strategy)
    (labels,) = averaged.labels(model, batch)
    file = sample_ade20k / "images/validation" / f"{batch['ids'][0]}.jpg"
    image = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)
    flips = (False, True) if flip else (False,)
    p = mean_probability(partial(logits_of, model), image, (320, 80), RATIOS, flips)
    assert labels.shape == image.shape[:2]
    assert len(labels.unique()) > 2
    assert agreement(labels, p.argmax(0)) > 0.9995
    # The scales and mirrors do matter.
    (plain,) = (strategy or WholeImage()).labels(
        model, {key: value for key, value in batch.items() if key != "scaled"}
    )
    assert agreement(labels, plain) < 0.99


def test_one_scale_with_its_mirror(model):
    image = picture(70, 101)
    (labels,) = evaluation.TestTimeAugmentation().labels(model, batch_of(image, (70, 101)))
    p = mean_probability(partial(whole, model), image, (101, 70), [1.0], (False, True))
    assert agreement(labels, p.argmax(0)) > 0.9995
    # What is seen in the mirror is the mirror of what is seen.
    mirrored = np.ascontiguousarray(image[:, ::-1])
    (other,) = evaluation.TestTimeAugmentation().labels(model, batch_of(mirrored, (70, 101)))
    assert agreement(other.flip(1), labels) > 0.9995


def test_padding_stays_at_the_right():
    images = torch.zeros(2, 3, 4, 5, dtype=torch.uint8)
    images[0, :, :2, :3] = torch.arange(1, 4, dtype=torch.uint8)
    images[1] = torch.arange(1, 6, dtype=torch.uint8)
    flipped = inference.flipped_inside(images, torch.tensor([[2, 3], [4, 5]]))
    assert flipped[0, 0].tolist() == [[3, 2, 1, 0, 0]] * 2 + [[0] * 5] * 2
    assert flipped[1, 2].tolist() == [[5, 4, 3, 2, 1]] * 4
    assert images[1, 0, 0].tolist() == [1, 2, 3, 4, 5]


def make_views():
    generator = torch.Generator().manual_seed(0)
    return [
        View(4 * torch.randn(7, 10, 12, generator=generator), (40, 48), (37, 45), False),
        View(4 * torch.randn(7, 15, 18, generator=generator), (60, 72), (60, 72), True),
        View(4 * torch.randn(7, 74, 90, generator=generator), (74, 90), (74, 90), False),
    ]


def plain_mean(views, size):
    total = 0
    for view in views:
        x = resize(view.logits[None], view.padded_size)[..., : view.size[0], : view.size[1]]
        p = resize(x, size).softmax(1)
        total = total + (p.flip(3) if view.flipped else p)
    return total[0].argmax(0)


@pytest.mark.parametrize("classes_at_once", [1, 3, 7])
@pytest.mark.parametrize("size", [(74, 90), (30, 35), (111, 140)])
def test_mean_probability_in_portions(size, classes_at_once, monkeypatch):
    largest = max(74 * 90, size[0] * size[1])
    monkeypatch.setattr(segmentation, "_VALUES_AT_ONCE", classes_at_once * largest)
    labels = labels_by_mean_probability(make_views(), size)
    assert labels.dtype == torch.uint8
    assert agreement(labels, plain_mean(make_views(), size)) > 0.9999


def test_probabilities_are_averaged_not_logits():
    """One view that is very sure against two that are sure: the sum of logits would say 0."""
    logits = [(30.0, 0.0), (0.0, 6.0), (0.0, 6.0)]
    views = [View(torch.tensor(x).view(2, 1, 1), (1, 1), (1, 1)) for x in logits]
    assert labels_by_mean_probability(views, (1, 1)).item() == 1


def test_scales_that_nothing_would_use_are_refused(model, sample_ade20k):
    batch = next(iter(make_data(sample_ade20k, eval_ratios=RATIOS).eval_loader("validation")))
    with pytest.raises(UserError, match=r"SlidingWindow, which takes one.*TestTimeAugmentation"):
        SlidingWindow().labels(model, batch)


def test_losses_come_with_the_labels(model):
    image, truth = picture(140, 203), torch.randint(0, K, (140, 203), dtype=torch.uint8)
    batch = batch_of(image, (140, 203)) | {"masks": [truth]}
    logits = whole(model, batch["images"][0])
    (labels,), (loss,) = WholeImage().scored(model, batch)
    assert torch.equal(labels, WholeImage().labels(model, batch)[0])
    assert loss.item() == pytest.approx(
        F.cross_entropy(logits, truth[None].long()).item(), rel=0.05
    )
    labels, losses = evaluation.TestTimeAugmentation().scored(model, batch)
    assert (len(labels), losses) == (1, ())


# In the task


def test_the_task_predicts_by_its_strategy(model):
    task = SegmentationTask(
        [f"class {i}" for i in range(K)],
        backbone=GroupMixFormer(**SMALL),
        decode_head=Head,
        inference=SlidingWindow(crop=80, stride=50),
    ).eval()
    task.model.load_state_dict(model.state_dict())
    image = picture(150, 200)
    (labels,) = task.predict_step(batch_of(image, (150, 200)), 0)
    assert agreement(labels, slide(model, as_tensor(image), 80, 50)[0].argmax(0)) > 0.9999
    (whole_labels,) = WholeImage().labels(task.model, batch_of(image, (150, 200)))
    assert agreement(labels, whole_labels) < 0.99
