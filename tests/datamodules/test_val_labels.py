"""Labels of ImageNet's flat validation folder, against torchvision's reader."""

import tarfile

import numpy as np
import pytest
from scipy.io import savemat
from torchvision.datasets import imagenet as theirs

from datamodules.images import DataError
from datamodules.val_labels import KAGGLE, OFFICIAL, find_val_labels, read_val_labels
from gmf_platform.errors import UserError

WNIDS = ["n03", "n01", "n02", "n00"]  # by ILSVRC2012_ID 1, 2, ...; the last has children


def write_devkit(root, truth=(2, 1, 3, 2)):
    """A development kit of three classes and an inner node, as the official meta.mat has them."""
    folder = root / "ILSVRC2012_devkit_t12/data"
    folder.mkdir(parents=True)
    kinds = [
        ("ILSVRC2012_ID", "O"),
        ("WNID", "O"),
        ("words", "O"),
        ("gloss", "O"),
        ("num_children", "O"),
        ("children", "O"),
        ("wordnet_height", "O"),
        ("num_train_images", "O"),
    ]
    rows = [
        (number, wnid, f"{wnid} word", "", float(number == 4), 0.0, 0.0, 10.0)
        for number, wnid in enumerate(WNIDS, start=1)
    ]
    savemat(folder / "meta.mat", {"synsets": np.array(rows, dtype=kinds)})
    (folder / OFFICIAL).write_text("".join(f"{number}\n" for number in truth))
    return folder


def test_the_official_truth_is_read_as_torchvision_reads_it(tmp_path, monkeypatch):
    folder = write_devkit(tmp_path)
    with tarfile.open(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        archive.add(folder.parent, "ILSVRC2012_devkit_t12")
    monkeypatch.setattr(theirs, "_verify_archive", lambda *_: None)
    theirs.parse_devkit_archive(tmp_path)
    _, expected = theirs.load_meta_file(tmp_path)
    labels = read_val_labels(folder / OFFICIAL)
    assert list(labels) == [f"ILSVRC2012_val_{i:08d}" for i in (1, 2, 3, 4)]
    assert list(labels.values()) == expected == ["n01", "n03", "n02", "n01"]


def test_the_official_truth_without_its_key(tmp_path):
    folder = write_devkit(tmp_path)
    (folder / "meta.mat").unlink()
    with pytest.raises(DataError, match=r"ground_truth\.txt: .* meta\.mat .* Copy it to"):
        read_val_labels(folder / OFFICIAL)


def test_the_key_in_data_below(tmp_path):
    folder = write_devkit(tmp_path)
    truth = (folder / OFFICIAL).rename(folder.parent / OFFICIAL)
    assert read_val_labels(truth)["ILSVRC2012_val_00000003"] == "n02"


def test_kaggles_solution(tmp_path):
    path = tmp_path / KAGGLE
    path.write_text(
        "ImageId,PredictionString\n"
        "ILSVRC2012_val_00048981,n03995372 85 1 499 272 \n"
        "ILSVRC2012_val_00037956,n03481172 131 0 499 254 n03481172 1 2 3 4 \n"
    )
    assert read_val_labels(path) == {
        "ILSVRC2012_val_00048981": "n03995372",
        "ILSVRC2012_val_00037956": "n03481172",
    }


def test_what_cannot_be_read_is_named(tmp_path):
    path = tmp_path / KAGGLE
    path.write_text("ImageId,PredictionString\nILSVRC2012_val_00000001,\n")
    with pytest.raises(DataError, match=r"solution\.csv: a line names no class: 'ILSVRC2012_val"):
        read_val_labels(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"solution\.csv: is no text"):
        read_val_labels(path)
    path.write_text("1\n2\n")
    (tmp_path / "meta.mat").write_bytes(b"hello" * 100)
    with pytest.raises(DataError, match=r"meta\.mat: cannot be read as that of the development"):
        read_val_labels(path)


def test_lines_of_two_words(tmp_path):
    path = tmp_path / "val.txt"
    path.write_text("val/a.jpg cat\nb.JPEG\tdog\n\nc,cat\n")
    assert read_val_labels(path) == {"a": "cat", "b": "dog", "c": "cat"}
    path.write_text("a.jpg cat\nb.jpg a dog\n")
    with pytest.raises(DataError, match=r"val\.txt: line 2 is not IMAGE CLASS: 'b\.jpg a dog'"):
        read_val_labels(path)
    path.write_text("\n")
    with pytest.raises(DataError, match=r"val\.txt: is empty"):
        read_val_labels(path)


def test_where_labels_are_looked_for(tmp_path):
    root = tmp_path / "imagenet"
    val = root / "val"
    val.mkdir(parents=True)
    with pytest.raises(UserError, match=r"nothing says their classes(.|\n)*LOC_val_solution\.csv"):
        find_val_labels(root, val, None)
    with pytest.raises(UserError, match=r"data\.val_labels: no file .*mine\.txt"):
        find_val_labels(root, val, "mine.txt")
    folder = write_devkit(root)
    assert find_val_labels(root, val, None) == folder / OFFICIAL
    (root / KAGGLE).touch()
    assert find_val_labels(root, val, None) == root / KAGGLE
    (root / "mine.txt").touch()
    assert find_val_labels(root, val, "mine.txt") == root / "mine.txt"
