"""One size for the images of all tasks, and batches of several tasks that belong together."""

import shutil

import cv2
import numpy as np
import pytest
import torch

from datamodules import ADE20K, COCO, ImageNet, MultiTask
from datamodules.joint_loader import together
from datamodules.transforms.common_size import CommonSize
from gmf_platform.errors import UserError


@pytest.fixture
def same_images(sample_ade20k, sample_coco, tmp_path):
    """Data of three tasks: those of det and seg are of the same files, cls has two of them."""
    root = tmp_path / "imagenet"
    for split, name in (("train", "training"), ("val", "validation")):
        files = sorted((sample_ade20k / "images" / name).iterdir())[:2]
        for label, file in zip("ab", files, strict=True):
            (root / split / label).mkdir(parents=True)
            shutil.copy(file, root / split / label)
    coco = tmp_path / "coco"
    shutil.copytree(sample_coco, coco)
    images = sorted((sample_ade20k / "images" / "validation").iterdir())
    targets = sorted((coco / "val2017").iterdir())
    for source, target in zip(images, targets, strict=True):
        shutil.copy(source, target)
    tasks = {
        "cls": ImageNet(str(root), global_batch_size=2, num_workers=0),
        "det": COCO(str(coco), global_batch_size=2, num_workers=0),
        "seg": ADE20K(str(sample_ade20k), global_batch_size=2, num_workers=0),
    }
    return MultiTask(tasks, joint_size=(160, 128), num_workers=0)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), (800, 1056)), ((427, 640), (800, 1184)), ((100, 1000), (128, 1344)),
     ((640, 480), (1056, 800)), ((30, 20), (1216, 800))],
)  # fmt: skip
def test_sides_are_multiples_of_32_and_fit(size, expected):
    # 480 x 640: the factor is 800 / 480, so 1066.7 wide, of which 33.3 times 32 are nearest.
    assert CommonSize(1333, 800).size(*size) == expected


def test_pixels_are_opencvs():
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    got = CommonSize(128, 96)(image)
    assert np.array_equal(got, cv2.resize(image, (128, 96), interpolation=cv2.INTER_LINEAR))


def test_a_size_that_no_backbone_takes():
    with pytest.raises(UserError, match=r"data.joint_size: 96 x 32 .* 64 pixels"):
        CommonSize(96, 32)


def test_batches_of_the_same_images_come_together():
    groups = {"a": [[0, 1], [2]], "b": [[0], [1, 2]], "c": [[1]]}
    names = {"a": ["x", "y", "z"], "b": ["z", "x", "y"], "c": ["x", "z"]}
    assert together(groups, names) == [
        {"a": [0, 1], "b": [1, 2]},
        {"a": [2], "b": [0], "c": [1]},
    ]


def test_two_images_of_one_name_stay_two():
    assert together({"a": [[0], [1]], "b": [[0]]}, {"a": ["x", "x"], "b": ["x"]}) == [
        {"a": [0], "b": [0]},
        {"a": [1]},
    ]


def test_each_way_of_scoring_has_all_samples_once(same_images):
    same_images.setup("validate")
    ways = []
    for way in same_images.evaluations():
        found = [
            (name, str(id_))
            for rank in range(2)
            for batch in same_images.eval_loader("validation", rank=rank, world_size=2)
            for name, parts in batch["tasks"].items()
            for part in parts
            for id_ in part["ids"]
        ]
        counts = {name: sum(task == name for task, _ in found) for name in same_images.tasks}
        assert counts == {"cls": 2, "det": 6, "seg": 6}
        assert len(set(found)) == len(found)
        ways.append(way["size"])
    assert ways == ["of each task", "160 x 128"]


def test_at_the_joint_size_tasks_see_the_same_pixels(same_images, sample_ade20k):
    same_images.setup("validate")
    data = same_images.tasks
    for task in data.values():
        task.common_size = same_images.joint_size
    assert data["seg"].image_names("validation")[:2] == data["cls"].image_names("validation")
    batches = {name: list(task.eval_loader("validation")) for name, task in data.items()}
    files = sorted((sample_ade20k / "images" / "validation").iterdir())
    predicted = list(same_images.predict_loader(files))
    for index, wanted in enumerate(predicted):
        assert wanted["images"].shape[2:] == (128, 128)
        for name in data if index < 2 else ("det", "seg"):
            got = batches[name][index]
            assert torch.equal(got["images"], wanted["images"]), name
            assert torch.equal(got["sizes"], wanted["sizes"])
            assert torch.equal(got["original_sizes"], wanted["original_sizes"])
