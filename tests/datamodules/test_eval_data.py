"""Which split is scored, and at which scales its images come."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import ADE20K
from datamodules.images import DataError
from gmf_platform.distributed.order import SampleKey
from gmf_platform.errors import UserError


def make_data(root, **settings):
    settings = {"classes": ["x", "y"], "scale": (200, 80), "num_workers": 0} | settings
    return ADE20K(str(root), **settings)


def resized(image, scale):
    """By the rule of mmcv's imrescale, in OpenCV."""
    height, width = image.shape[:2]
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    size = (int(width * factor + 0.5), int(height * factor + 0.5))
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)


def images_of(batch):
    return [image.permute(1, 2, 0).numpy() for image in batch["images"]]


def test_scales_are_resized_from_the_file(make_folder):
    root = make_folder()
    data = make_data(root, eval_ratios=[0.5, 1.0, 1.33])
    (batch, _) = data.eval_loader("validation")
    file = np.asarray(Image.open(root / "images/validation/d.jpg"))
    scales = [(100, 40), (200, 80), (266, 106)]  # products are truncated
    assert len(batch["scaled"]) == 3
    for version, scale in zip(batch["scaled"], scales, strict=True):
        (image,) = images_of(version)
        assert np.array_equal(image, resized(file, scale))
        assert version["sizes"].tolist() == [list(image.shape[:2])]
    assert torch.equal(batch["images"], batch["scaled"][1]["images"])
    assert batch["original_sizes"].tolist() == [[40, 50]]


def test_scales_of_a_batch_are_padded_each(make_folder):
    root = make_folder()
    Image.fromarray(np.zeros((60, 50, 3), np.uint8)).save(root / "images/validation/e.jpg")
    Image.fromarray(np.ones((60, 50), np.uint8)).save(root / "annotations/validation/e.png")
    data = make_data(root, eval_ratios=[0.5, 1.0], eval_batch_size=2)
    (batch,) = data.eval_loader("validation")
    assert [tuple(v["images"].shape) for v in batch["scaled"]] == [(2, 3, 48, 50), (2, 3, 96, 100)]
    assert batch["scaled"][0]["sizes"].tolist() == [[40, 50], [48, 40]]  # by shape


def test_scales_come_in_prediction_too_but_not_in_training(make_folder):
    root = make_folder()
    data = make_data(root, eval_ratios=[0.5], crop_size=32, global_batch_size=2)
    (batch,) = data.predict_loader([root / "images/validation/d.jpg"])
    assert batch["scaled"][0]["images"].shape == (1, 3, 40, 50)
    assert "scaled" not in next(iter(data.train_loader(steps=1)))
    (plain, _) = make_data(root).eval_loader("validation")
    assert "scaled" not in plain


def test_a_ratio_of_nothing_is_refused(make_folder):
    with pytest.raises(UserError, match="scale must be positive"):
        make_data(make_folder(), eval_ratios=[0.0]).split("validation")


def names_tested(data):
    data.setup("test")
    return [batch["ids"][0] for batch in data.eval_loader(data.test_split)]


def test_split_that_is_tested(make_folder):
    root = make_folder()
    assert names_tested(make_data(root)) == ["d", "e"]
    assert names_tested(make_data(root, test_split="training")) == ["a", "b", "c"]
    for kind in ("images", "annotations"):
        (root / kind / "validation").rename(root / kind / "holdout")
        (root / kind / "validation").mkdir()
        (root / kind / "validation" / "x.txt").touch()
    assert names_tested(make_data(root, test_split="holdout")) == ["d", "e"]


def test_training_images_are_tested_as_they_are(make_folder):
    """Not as they are trained on: the same images, once augmented and once not."""
    root = make_folder()
    data = make_data(root, test_split="training", crop_size=32)
    data.setup("fit")
    data.setup("test")
    plain = data.split("training", training=False)[SampleKey(0, 0)]
    file = np.asarray(Image.open(root / "images/training/a.jpg"))
    assert np.array_equal(plain["image"], resized(file, (200, 80)))
    assert plain["mask"].shape == (40, 50)
    assert data.split("training")[SampleKey(0, 0)]["image"].shape == (32, 32, 3)


def test_a_split_that_is_not_there_is_named(make_folder):
    root = make_folder()
    with pytest.raises(
        DataError, match=r"images/testing .*data\.test_split.* training, validation"
    ):
        make_data(root, test_split="testing").setup("test")
    (root / "images" / "testing").mkdir()
    with pytest.raises(DataError, match=r"no folder .*annotations/testing"):
        make_data(root, test_split="testing").setup("test")
