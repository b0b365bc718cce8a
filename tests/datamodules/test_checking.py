"""check-data's machinery: each kind of problem, the counts, and several processes."""

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from datamodules import ADE20K
from datamodules.checking import Finding, class_table, inspect_all
from datamodules.images import DataError, Flaw

SIZE = (40, 50)


def ade(root):
    return ADE20K(str(root), classes=["x", "y"])


def check(root, split="training", workers=0, **settings):
    return inspect_all(ade(root).inspectable(split), workers=workers, **settings)


def spoil_image(root, change):
    path = root / "images/training/b.jpg"
    path.write_bytes(change(path.read_bytes()))
    return path


def save_mask(root, array):
    path = root / "annotations/training/b.png"
    Image.fromarray(array).save(path)
    return path


def test_a_sound_set(make_folder):
    root = make_folder()
    report = check(root)
    masks = [np.array(Image.open(p)) for p in sorted((root / "annotations/training").iterdir())]
    assert (report.samples, report.num_problems) == (3, 0)
    assert report.sound == [0, 1, 2]
    assert report.sizes == [SIZE] * 3
    values = Counter(np.concatenate([mask.ravel() for mask in masks]).tolist())
    assert report.counts == {255: values[0], 0: values[1], 1: values[2]}
    assert report.images_with == {255: 3, 0: 3, 1: 3}


def test_unreadable(make_folder):
    root = make_folder()
    path = spoil_image(root, lambda data: b"<html>" + data)
    report = check(root)
    assert list(report.problems) == [Flaw.UNREADABLE]
    (said,) = report.problems[Flaw.UNREADABLE]
    assert said.startswith(f"{path}: is not an image")
    assert report.sound == [0, 2]
    assert len(report.sizes) == 2


def test_truncated_image_and_mask(make_folder):
    root = make_folder()
    image = spoil_image(root, lambda data: data[: len(data) // 2])
    mask = root / "annotations/training/b.png"
    mask.write_bytes(mask.read_bytes()[:-200])
    found = check(root).problems[Flaw.TRUNCATED]
    assert [line.partition(":")[0] for line in found] == [str(image), str(mask)]


def test_without_partner_in_both_directions(make_folder):
    root = make_folder()
    (root / "images/training/a.jpg").unlink()
    (root / "annotations/training/b.png").unlink()
    report = check(root)
    assert report.samples == 1
    assert report.problems == {
        Flaw.NO_PARTNER: [
            f"{root}/images/training/b.jpg: has no mask b.png",
            f"{root}/annotations/training/a.png: no image has this mask",
        ]
    }


def test_of_another_size(make_folder):
    root = make_folder()
    path = save_mask(root, np.ones((50, 40), np.uint8))
    assert check(root).problems == {
        Flaw.SIZE: [f"{path}: is 40 x 50 pixels, its image b.jpg is 50 x 40"]
    }


def test_labels_outside_are_named(make_folder):
    root = make_folder()
    mask = np.ones(SIZE, np.uint8)
    mask[0], mask[1, 0] = 7, 9
    path = save_mask(root, mask)
    report = check(root)
    (said,) = report.problems[Flaw.LABEL]
    assert said.startswith(f"{path}: has labels 9, 7, but there are 2 classes (labels 1..2,")
    assert report.counts[0] < 3 * SIZE[0] * SIZE[1] / 2  # of the two sound masks alone


def test_colour_picture_is_recognised(make_folder):
    root = make_folder()
    path = save_mask(root, np.zeros((*SIZE, 3), np.uint8))
    report = check(root)
    (said,) = report.problems[Flaw.COLOUR]
    assert said.startswith(f"{path}: is a colour picture, not label numbers")
    assert "data.palette" in said
    report.problems[Flaw.COLOUR] *= 3
    assert "\n".join(report.lines()).count("data.palette") == 1  # what to do is said once


def test_a_set_of_one_class(make_folder):
    root = make_folder()
    for path in (root / "annotations/training").iterdir():
        Image.fromarray(np.full(SIZE, 2, np.uint8)).save(path)
    assert check(root).problems == {Flaw.BALANCE: ["1 of 2 classes occur in all masks"]}


def test_processes_find_the_same(make_folder):
    root = make_folder()
    spoil_image(root, lambda data: data[:100])
    alone, together = check(root), check(root, workers=2)
    assert alone == together
    assert alone.num_problems == 1


class Many:
    """A set of which each sample is bad, each in two ways."""

    unit = "boxes"

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def problems(self):
        return [DataError("the list", flaw=Flaw.NO_PARTNER)]

    def notes(self):
        return ["some are left out"]

    def inspect(self, index):
        problems = [DataError(f"sample {index}"), DataError("label", flaw=Flaw.LABEL)]
        return Finding(problems, size=(10 * index, 7), counts={0: index, 3: 0})

    def judge(self, counts):
        return [DataError(f"sum {sum(counts.values())}", flaw=Flaw.BALANCE)]


def test_twenty_of_a_kind_are_shown_and_all_counted():
    seen = []
    report = inspect_all(Many(30), workers=0, progress=lambda *done: seen.append(done))
    text = "\n".join(report.lines())
    assert text.startswith("30 images, width 7 / 7 / 7, height 0 / 145 / 290 pixels")
    assert text.splitlines()[1] == "some are left out"
    assert "unreadable: 30\n" in text
    assert "  sample 19\n  ... and 10 more" in text
    assert "sample 20" not in text
    assert f"sum {sum(range(30))}" in text
    assert report.num_problems == 1 + 30 + 30 + 1
    assert report.images_with == {0: 29}
    assert seen[-1] == (30, 30)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_table_of_classes():
    reports = {name: inspect_all(Many(3), workers=0) for name in ("training", "validation")}
    reports["training"].counts.update({1: 9, 255: 4})
    reports["training"].images_with[1] = 1
    lines = class_table(reports, ["cat", "dog"])
    assert lines[0].split() == ["training", "validation"]
    assert lines[1].split() == ["boxes", "images"] * 2
    assert lines[2].split() == ["0", "cat", "25.00%", "2", "100.00%", "2"]
    assert lines[3].split() == ["1", "dog", "75.00%", "1", "0.00%", "0"]
    assert lines[4:] == ["ignored in training: 25.0% of the boxes", "never in validation: dog"]


def test_of_palette_pictures_the_indices_count(make_folder):
    root = make_folder()
    picture = Image.fromarray(np.ones(SIZE, np.uint8))
    picture.putpalette([0, 0, 0, 255, 0, 0])
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    (root / "annotations/training/b.png").write_bytes(stream.getvalue())
    assert check(root).num_problems == 0


@pytest.mark.data
def test_real_data_are_sound(real_data):
    root = real_data("camvid_mini")
    data = ADE20K(str(root), classes=str(root / "classes.txt"))
    report = inspect_all(data.inspectable("validation"), workers=0)
    assert (report.samples, report.num_problems) == (50, 0)
    assert sorted(report.images_with) == [*range(11), 255]
