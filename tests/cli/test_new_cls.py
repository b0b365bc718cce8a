"""new cls: what it decides by the data, and that its config trains."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from gmf_platform.cli.new_classification import ClassSurvey, size_training
from gmf_platform.errors import UserError


@pytest.fixture
def write(tmp_path):
    """Write so many images of each folder."""

    def make(counts, size=(48, 64)):
        generator = np.random.default_rng(0)
        for folder, count in counts.items():
            (tmp_path / "set" / folder).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "set" / folder / f"{i}.png")

    return make


@pytest.fixture
def new(gmf, tmp_path):
    """Run ``new cls`` on the written folders; gives its config, and what it noted."""

    def run(images="set"):
        result = gmf("new", "cls", "--images", images)
        assert result.code == 0, result.err
        (tmp_path / "my.yaml").write_text(result.out)
        return yaml.safe_load(result.out), result.err

    return run


@pytest.fixture
def tiny(tmp_path):
    """An overlay: a small network and two steps."""
    backbone = {"embedding_dims": [10, 10, 20, 20], "depths": [1] * 4, "mlp_ratios": [2] * 4}
    content = {
        "init_from": "none",
        "model": {"backbone": backbone},
        "trainer": {"max_steps": 2, "num_sanity_val_steps": 0},
        "data": {"image_size": 64, "num_workers": 0},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    return ("--config", "my.yaml", "--config", "tiny.yaml")


def test_a_set_without_a_split_trains(gmf, write, new, tiny, tmp_path):
    write({"cat": 10, "dog": 12, "yak": 11})
    config, notes = new()
    data = config["data"]["init_args"]
    assert data["val_fraction"] == 0.2
    assert "note: 33 images of 3 classes" in notes
    assert "20% of each class is for validation" in notes
    assert "#   dog: 12\n" in (tmp_path / "my.yaml").read_text()
    result = gmf("fit", *tiny)
    assert result.code == 0, result.err
    assert '"finished": true' in result.out
    kept = (tmp_path / "runs" / "my-tiny" / "validation.txt").read_text()
    assert len(kept.split()) == 2 + 2 + 2  # a fifth of each


def test_a_divided_set_trains_and_predicts(gmf, write, new, tiny, tmp_path):
    write({"train/cat": 20, "train/dog": 20, "val/cat": 3, "val/dog": 4})
    config, _ = new()
    assert "val_fraction" not in config["data"]["init_args"]
    assert config["data"]["init_args"]["global_batch_size"] == 16
    assert gmf("fit", *tiny).code == 0
    words = ("--images", "set/val", "--output", "out", "--data.num_workers", 0)
    result = gmf("predict", "--run", "runs/my-tiny", *words)
    assert result.code == 0, result.err
    assert "7 images: predictions.json, predictions.csv and pictures are in out" in result.out


def test_uneven_classes_are_told(write, new):
    write({"cat": 2, "dog": 30})
    _, notes = new()
    assert "30 images of dog and 2 of cat" in notes
    assert "val/macc" in notes


def test_classes_without_validation_images(gmf, write, new, tiny):
    write({"train/cat": 20, "train/dog": 20, "val/dog": 4, "val/cat": 0})
    config, notes = new()
    assert config["data"]["init_args"]["allow_empty_classes"] is True
    assert "1 classes have no validation images: cat" in notes
    assert gmf("fit", *tiny).code == 0


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"cat": 3}, "holds one class, cat"),
        ({"training/cat": 3, "validation/cat": 3}, "training, validation, which look like parts"),
        ({"train/cat": 3, "valid/cat": 3}, "valid, which look like parts"),
        ({"cat": 3, "dog": 0}, "dog: has no images"),
        ({"train/cat": 3, "train/dog": 0, "val/cat": 2, "val/dog": 2}, "no training images of dog"),
    ],
)
def test_folders_that_are_not_understood(gmf, write, counts, said):
    write(counts)
    result = gmf("new", "cls", "--images", "set")
    assert result.code == 2
    assert said in result.err
    assert result.out == ""


def test_a_folder_without_classes(gmf, tmp_path):
    assert "there is no such folder" in gmf("new", "cls", "--images", "none").err
    (tmp_path / "set").mkdir()
    assert "holds no folders" in gmf("new", "cls", "--images", "set").err


def survey(images, *, size=(400, 500), val_fraction=None):
    return ClassSurvey(Path("x"), val_fraction, {"a": images // 2, "b": images // 2}, 0, [], [size])


@pytest.mark.parametrize(
    ("images", "batch", "epochs", "warmup", "variant"),
    [
        (1_281_166, 512, 30, 2, "small"),  # 75,000 steps
        (10_000, 256, 77, 5, "tiny"),
        (1500, 64, 128, 8, "mobile"),
        (300, 16, 160, 10, "mobile"),
        (100, 16, 300, 20, "mobile"),
        (10, 10, 300, 20, "mobile"),
    ],
)
def test_the_run_is_sized_to_the_set(images, batch, epochs, warmup, variant):
    sizing = size_training(survey(images))
    assert (sizing.batch, sizing.epochs, sizing.warmup) == (batch, epochs, warmup)
    assert sizing.variant == variant
    assert sizing.epochs // sizing.val_epochs in range(20, 31)


@pytest.mark.parametrize(
    ("size", "expected"), [((400, 500), 224), ((200, 150), 160), ((28, 28), 128)]
)
def test_the_image_size_is_that_of_small_images(size, expected):
    assert size_training(survey(100, size=size)).image_size == expected


def test_too_few_images():
    with pytest.raises(UserError, match="1 images are too few"):
        size_training(survey(2, val_fraction=0.5))
