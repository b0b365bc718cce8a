"""Class folders, against torchvision's ImageFolder."""

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from datamodules.class_folders import class_folders, find_in_class_folders, find_listed
from datamodules.class_samples import FolderSamples
from datamodules.images import DataError, Flaw


@pytest.fixture
def folder(tmp_path):
    """Classes of uneven size, suffixes of any case, folders in folders, and other files."""
    names = [
        "b/2.JPEG",
        "b/10.jpg",
        "b/deep/1.Png",
        "B/x.webp",
        "a c/1.bmp",
        "a c/ü.jpeg",
        "z/1.jpg",
    ]
    for name in names:
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = {".webp": "WEBP", ".bmp": "BMP", ".png": "PNG"}.get(path.suffix.lower(), "JPEG")
        Image.new("RGB", (8, 8)).save(path, kind)
    (tmp_path / "train/b/readme.txt").touch()
    (tmp_path / "train/b/._2.JPEG").touch()
    (tmp_path / "train/notes.txt").touch()
    return tmp_path / "train"


def test_names_and_labels_are_those_of_torchvision(folder):
    theirs = ImageFolder(folder)
    (folder / ".hidden").mkdir()
    names = class_folders(folder)
    found = find_in_class_folders(folder.parent, folder, names, allow_empty=False)
    assert names == theirs.classes
    expected = {
        (path.removeprefix(f"{folder.parent}/"), label)
        for path, label in theirs.samples
        if "/._" not in path
    }
    assert found.problems == []
    assert set(found.whole()) == expected
    assert len(found.entries) == len(expected)
    assert [label for _, label in found.entries] == sorted(label for _, label in found.entries)


def test_samples_of_a_folder(folder):
    found = find_in_class_folders(folder.parent, folder, class_folders(folder), allow_empty=False)
    samples = FolderSamples(folder.parent, found.entries)
    assert len(samples) == 7
    for i, (name, label) in enumerate(found.entries):
        assert (samples.id(i), samples.label(i)) == (name, label)
        assert samples.read(i) == (folder.parent / name).read_bytes()
    (folder.parent / samples.id(3)).unlink()
    with pytest.raises(DataError, match=f"{samples.id(3)}: there is no such file"):
        samples.read(3)
    assert len(FolderSamples(folder, [])) == 0


def test_empty_classes_are_all_named(folder):
    (folder / "empty").mkdir()
    (folder / "text").mkdir()
    (folder / "text/a.txt").touch()
    names = [*class_folders(folder), "absent"]
    found = find_in_class_folders(folder.parent, folder, names, allow_empty=False)
    assert [problem.flaw for problem in found.problems] == [Flaw.EMPTY_CLASS] * 3
    with pytest.raises(DataError) as caught:
        found.whole()
    said = str(caught.value).splitlines()
    assert said[0].startswith(f"{folder}/empty: has no images of this class.")
    assert said[1].startswith(f"{folder}/text: has no images of this class.")
    assert said[2].startswith(f"{folder}/absent: there is no such folder")
    assert "data.allow_empty_classes" in said[0]
    allowed = find_in_class_folders(folder.parent, folder, names, allow_empty=True)
    assert allowed.whole() == found.entries


def test_a_folder_that_is_no_class(folder):
    found = find_in_class_folders(folder.parent, folder, ["b", "z"], allow_empty=False)
    assert [problem.flaw for problem in found.problems] == [Flaw.CLASS] * 2
    with pytest.raises(DataError, match=r"train/B: this folder is none of the 2 classes \(b, z\)"):
        found.whole()


def test_ten_problems_are_enough(folder):
    names = [f"class{i}" for i in range(30)]
    found = find_in_class_folders(folder.parent, folder, names, allow_empty=False)
    assert len(found.problems) == 34
    with pytest.raises(DataError, match=r"\.\.\. and 24 more; check-data lists them all$"):
        found.whole()


def test_listed_images(tmp_path):
    (tmp_path / "val").mkdir()
    for name in ("x.JPEG", "y.JPEG", "v.JPEG", "w.JPEG"):
        (tmp_path / "val" / name).touch()
    classes = {"x": "b", "y": "a", "w": "c", "more": "a"}
    found = find_listed(tmp_path, tmp_path / "val", classes, ["a", "b"])
    assert found.entries == [("val/x.JPEG", 1), ("val/y.JPEG", 0)]
    assert [str(p).removeprefix(f"{tmp_path}/") for p in found.problems] == [
        "val/v.JPEG: is not in the list of labels",
        "val/w.JPEG: is of no class: 'c'",
    ]
