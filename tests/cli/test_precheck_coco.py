"""Paths of COCO sets are checked before torch is imported, those of one's own names too."""

import pytest

CONFIG = """\
data:
  class_path: datamodules.COCO
  init_args:
    root: set
"""
FOLDERS = ("train2017", "val2017", "annotations")


@pytest.fixture
def check(gmf, tmp_path):
    """Write a config with more keys, and check its data."""

    def run(*keys):
        lines = "".join(f"    {key}\n" for key in keys)
        (tmp_path / "det.yaml").write_text(CONFIG + lines)
        return gmf("check-data", "--config", "det.yaml").err

    return run


def test_the_official_layout(check, tmp_path):
    assert check().startswith("error: COCO: the folder set does not exist.")
    for folder in FOLDERS:
        (tmp_path / "set" / folder).mkdir(parents=True)
        assert f"has no files in {', '.join(FOLDERS[FOLDERS.index(folder) :])}" in check()
        (tmp_path / "set" / folder / "a").touch()
    file = "set/annotations/instances_train2017.json"
    assert check() == f"error: data.train_annotations: no file {file}\n"


def test_names_of_ones_own(check, tmp_path):
    (tmp_path / "set").mkdir()
    keys = [
        "train_images: a",
        "train_annotations: a.json",
        "val_images: b",
        "val_annotations: b.json",
    ]
    assert check(*keys) == "error: data.train_images: set/a: no such folder, or it is empty\n"
    for folder in "ab":
        (tmp_path / "set" / folder).mkdir()
        (tmp_path / "set" / folder / "x.jpg").touch()
    assert check(*keys) == "error: data.train_annotations: no file set/a.json\n"


def test_one_file_for_both(check, tmp_path):
    (tmp_path / "set/images").mkdir(parents=True)
    (tmp_path / "set/images/x.jpg").touch()
    keys = ["images: images", "annotations: all.json"]
    assert "which images are for validation" in check(*keys)
    assert check(*keys, "val_fraction: 0.1") == "error: data.annotations: no file set/all.json\n"
    assert "data.images and data.annotations" in check("val_fraction: 0.1")
