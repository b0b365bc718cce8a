"""check-data: what it prints, its exit code and its picture."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from gmf_platform.cli import experiment


@pytest.fixture
def words(sample_ade20k):
    return ("check-data", "--config", "seg_ade20k", "--data.root", sample_ade20k)


@pytest.fixture
def spoilt(sample_ade20k, tmp_path):
    """A copy of the sample with a problem in each split."""
    root = tmp_path / "spoilt"
    for path in sample_ade20k.rglob("*.*"):
        target = root / path.relative_to(sample_ade20k)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    image = min((root / "images/training").iterdir())
    image.write_bytes(image.read_bytes()[:300])
    mask = min((root / "annotations/validation").iterdir())
    Image.fromarray(np.full((96, 96), 77, np.uint8)).save(mask)
    return root, image, mask


def test_sound_data(gmf, words, tmp_path, sample_ade20k):
    result = gmf(*words, "--workers", 0)
    assert result.code == 0, result.err
    assert "training     12 images, all 96 x 96 pixels" in result.out
    assert "validation   6 images" in result.out
    assert result.out.endswith("check-data-seg_ade20k.png\nproblems     0\n")
    assert "training: 12/12 opened\n" in result.err  # no terminal, so lines
    masks = [np.array(Image.open(p)) for p in (sample_ade20k / "annotations/training").iterdir()]
    labelled = np.concatenate([mask[mask > 0] for mask in masks])
    row = next(line.split() for line in result.out.splitlines() if line.startswith("  0"))
    assert row[-4:-2] == [f"{np.mean(labelled == 1):.2%}", str(sum((m == 1).any() for m in masks))]
    sheet = Image.open(tmp_path / "check-data-seg_ade20k.png")
    assert sheet.width == 4 * 320
    assert sheet.height > 3 * 320  # three rows of square images and a legend


def test_no_model_is_built(gmf, words, monkeypatch):
    def refuse(*_):
        raise AssertionError("the model was built")

    monkeypatch.setattr(experiment._Parser, "build", refuse)
    assert gmf(*words, "--workers", 0).code == 0


def test_problems(gmf, words, spoilt):
    root, image, mask = spoilt
    result = gmf(*words, "--data.root", root, "--workers", 2, "--sheet", "here.png")
    assert result.code == 2
    assert f"  truncated: 1\n    {image}: is cut off" in result.out
    assert f"  labels outside the classes: 1\n    {mask}: has label 77" in result.out
    assert result.out.endswith("here.png\nproblems     2\n")


def test_nothing_sound_gives_no_sheet(gmf, words, spoilt, tmp_path):
    root, *_ = spoilt
    for path in (root / "images/training").iterdir():
        path.write_bytes(b"no image")
    result = gmf(*words, "--data.root", root, "--workers", 0)
    assert result.code == 2
    assert "unreadable: 12" in result.out
    assert list(tmp_path.glob("*.png")) == []


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--sheet", "no/where.png"), "--sheet no/where.png: no folder"),
        (("--workers", "-1"), "--workers -1"),
        (("--data.root", "nowhere"), "the folder nowhere does not exist"),
        (("--data.crop_sizes", "3"), "did you mean 'crop_size'?"),
        (("--data.classes", "none.txt"), "error: data.classes: no file none.txt"),
    ],
)
def test_wrong_words(gmf, words, more, said):
    result = gmf(*words, *more)
    assert (result.code, result.out) == (2, "")
    assert said in result.err


def test_missing_files_of_ones_own_answer_without_torch(tmp_path):
    (tmp_path / "my.yaml").write_text(
        "data:\n  class_path: datamodules.SegmentationFiles\n  init_args:\n"
        "    {images: a, masks: b, zero_is: class, ignore_value: null, val_fraction: 0.1}\n"
    )
    code = (
        "import sys; from gmf_platform.cli.main import main;"
        "code = main(['check-data', '--config', 'my.yaml']);"
        "print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout == "2 False\n"
    assert done.stderr.startswith("error: data.images: a: no such folder")


@pytest.mark.parametrize(
    ("key", "other"), [("zero_is", "ignore_value: null"), ("ignore_value", "zero_is: class")]
)
def test_what_must_be_said(gmf, tmp_path, key, other):
    (tmp_path / "my.yaml").write_text(
        "data:\n  class_path: datamodules.SegmentationFiles\n  init_args:\n"
        f"    {{images: a, masks: b, val_fraction: 0.1, {other}}}\n"
    )
    result = gmf("check-data", "--config", "my.yaml")
    assert result.code == 2
    assert result.err.startswith(f"error: data.{key} is not said: ")
