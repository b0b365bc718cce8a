"""Sets of one's own: pairs, values and colours, splits, and what is refused before training."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import SegmentationFiles
from datamodules.images import DataError
from datamodules.labels import IGNORE
from gmf_platform.errors import UserError

SIZE = (60, 30)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def mask_of(values, size=SIZE):
    """Stripes of values, which may be colours; each value has the same share."""
    rows = np.array([values[i * len(values) // size[0]] for i in range(size[0])], dtype=np.uint8)
    return np.ascontiguousarray(np.repeat(rows[:, None], size[1], axis=1))


@pytest.fixture
def write(tmp_path):
    """Write images and masks: ``write("abc", [0, 1], mask="m/{}.png")``; gives the folder."""

    def make(names, values, image="images/{}.jpg", mask="masks/{}.png"):
        for name in names:
            save(tmp_path / image.format(name), np.zeros((*SIZE, 3), np.uint8))
            save(tmp_path / mask.format(name), mask_of(values))
        return tmp_path

    return make


def make_data(root, **settings):
    defaults = {
        "images": "images",
        "masks": "masks",
        "classes": ["x", "y"],
        "zero_is": "class",
        "ignore_value": None,
        "val_fraction": 0.25,
        "global_batch_size": 2,
        "crop_size": 16,
        "scale": (64, 16),
        "num_workers": 0,
    }
    return SegmentationFiles(str(root), **{**defaults, **settings})


def fitted(root, **settings):
    data = make_data(root, **settings)
    data.setup("fit")
    return data


def names(data, split):
    return [image.relative_to(data.root).as_posix() for image, _ in data.pairing(split).pairs]


def all_names(data):
    return sorted(names(data, "training") + names(data, "validation"))


def labels_of(data, split="validation"):
    return next(iter(data.eval_loader(split)))["masks"][0]


# Pairs


def test_folders_with_sub_folders(write):
    write(["one/a", "one/b", "two/a", "two/b"], [0, 1])
    pairs = fitted(write([], []))._pairing.pairs
    assert [(i.parent.name, i.stem) for i, _ in pairs] == [
        (m.parent.name, m.stem) for _, m in pairs
    ]
    assert len(pairs) == 4


def test_suffix_in_another_folder_and_in_the_same(write):
    root = write("abcd", [0, 1], mask="masks/{}_mask.png")
    assert len(all_names(fitted(root, mask_suffix="_mask"))) == 4
    root = write("abcd", [0, 1], image="both/{}.png", mask="both/{}_mask.png")
    data = fitted(root, images="both", masks="both", mask_suffix="_mask")
    assert all_names(data) == [f"both/{name}.png" for name in "abcd"]


def test_patterns(write):
    root = write("abcd", [0, 1], image="x/in/{}.jpg", mask="x/out/{}.png")
    write("ab", [0, 1], image="y/other/{}.jpg", mask="y/none/{}.png")
    data = fitted(root, images="*/in/*.jpg", masks="*/out/*.png")
    assert all_names(data) == [f"x/in/{name}.jpg" for name in "abcd"]


def test_absolute_paths_need_no_root(write):
    root = write("abcd", [0, 1])
    data = make_data(".", images=str(root / "images"), masks=str(root / "masks"))
    data.setup("fit")
    assert len(data.pairing("training").pairs) == 3


def test_list_of_pairs(write):
    root = write("abcd", [0, 1])
    (root / "pairs.txt").write_text(
        "".join(f"images/{a}.jpg\tmasks/{b}.png\n" for a, b in zip("abc", "bcd", strict=True))
    )
    data = fitted(root, images=None, masks=None, pairs="pairs.txt", val_fraction=0.3)
    stems = [(i.stem, m.stem) for i, m in data._pairing.pairs]
    assert stems == [("a", "b"), ("b", "c"), ("c", "d")]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("images/a.jpg masks/a.png", r"pairs\.txt:2: a line is IMAGE<tab>MASK"),
        ("images/z.jpg\tmasks/a.png", r"pairs\.txt:2: no file .*z\.jpg"),
        ("images/a.jpg\tmasks/z.png", r"1 of 2 images .*the first is a\.jpg, .*z\.png"),
    ],
)
def test_wrong_list_of_pairs(write, line, said):
    root = write("ab", [0, 1])
    (root / "pairs.txt").write_text(f"images/b.jpg\tmasks/b.png\n{line}\n")
    with pytest.raises(DataError, match=said):
        fitted(root, images=None, masks=None, pairs="pairs.txt")


def test_two_files_of_one_name_are_refused(write):
    root = write("abcd", [0, 1])
    save(root / "images/a.png", np.zeros((*SIZE, 3), np.uint8))
    with pytest.raises(DataError, match=r"a\.png: has the same name as .*a\.jpg"):
        fitted(root)


def test_missing_mask_is_named(write):
    root = write("abcd", [0, 1])
    (root / "masks/b.png").unlink()
    with pytest.raises(DataError, match=r"1 of 4 images .*: the first is b\.jpg"):
        fitted(root)


# Values


@pytest.mark.parametrize(
    ("zero_is", "ignore_value", "num_classes", "values", "labels"),
    [
        ("class", None, 2, [0, 1], [0, 1]),
        ("class", 255, 2, [0, 1, 255], [0, 1, IGNORE]),
        ("ignore", None, 2, [0, 1, 2], [IGNORE, 0, 1]),
        ("ignore", 255, 2, [0, 1, 2, 255], [IGNORE, 0, 1, IGNORE]),
        ("class", 1, 3, [0, 1, 2, 3], [0, IGNORE, 1, 2]),
        ("class", 3, 3, [0, 1, 2, 3], [0, 1, 2, IGNORE]),
    ],
)
def test_values(write, zero_is, ignore_value, num_classes, values, labels):
    root = write("abcd", values)
    classes = [f"c{i}" for i in range(num_classes)]
    data = fitted(root, zero_is=zero_is, ignore_value=ignore_value, classes=classes)
    assert labels_of(data).numpy().tolist() == mask_of(labels).tolist()


RED, BLACK, BLUE = [255, 0, 0], [0, 0, 0], [0, 0, 255]


@pytest.mark.parametrize(
    ("palette", "settings", "class_names", "labels"),
    [
        ([BLACK, RED, BLUE], {"classes": ["b", "r", "l"]}, ["b", "r", "l"], [0, 1, 2]),
        ({"b": BLACK, "l": BLUE, "r": RED}, {}, ["b", "l", "r"], [0, 2, 1]),
        ({"b": BLACK, "r": RED, "l": BLUE}, {"zero_is": "ignore"}, ["r", "l"], [IGNORE, 0, 1]),
        ({"b": BLACK, "r": RED, "l": BLUE}, {"ignore_value": 1}, ["b", "l"], [0, IGNORE, 1]),
    ],
)
def test_palette(write, palette, settings, class_names, labels):
    root = write("abcd", [BLACK, RED, BLUE])
    data = fitted(root, palette=palette, **{"classes": None, **settings})
    assert data.class_names == class_names
    assert labels_of(data).numpy().tolist() == mask_of(labels).tolist()


def test_palette_of_grey_values(write):
    root = write("abcd", [0, 255])
    data = fitted(root, classes=None, palette={"ground": BLACK, "thing": [255] * 3})
    assert labels_of(data).unique().tolist() == [0, 1]


def test_colour_outside_the_palette_names_file_and_colour(write):
    root = write("abcd", [BLACK, RED])
    save(root / "masks/b.png", mask_of([BLACK, RED, [1, 2, 3]]))
    data = make_data(root, palette=[BLACK, RED], check_masks=0)
    data.setup("fit")
    (split,) = (s for s in ("training", "validation") if "images/b.jpg" in names(data, s))
    with pytest.raises(DataError, match=r"b\.png: has colour \(1, 2, 3\), not in data\.palette"):
        list(data.eval_loader(split))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"palette": [BLACK, RED, BLUE]}, "3 colours are left .* 2 names"),
        ({"palette": [BLACK, BLACK]}, "stands there twice"),
        ({"palette": [BLACK, [0, 0, 256]]}, r"\[0, 0, 256\] is no colour"),
        ({"classes": None}, r"data\.classes is not said"),
        ({"classes": ["x"]}, "1 classes"),
        ({"ignore_value": 0}, "which of them is meant"),
        ({"ignore_value": -1}, r"-1 is not in 0\.\.65535"),
        ({"val_fraction": 1.0}, "no share between 0 and 1"),
    ],
)
def test_wrong_settings(tmp_path, settings, said):
    with pytest.raises(UserError, match=said):
        make_data(tmp_path, **settings)


# What is refused before training


def test_the_rule_of_ade20k_would_empty_two_valued_masks(write):
    root = write("abcd", [0, 255])
    with pytest.raises(UserError) as said:
        fitted(root, zero_is="ignore", ignore_value=255)
    message = str(said.value)
    assert "  0                 50.00%  ignored\n" in message
    assert "  255               50.00%  ignored\n" in message
    assert "0 of 2 classes occur" in message
    assert "100% of the pixels are ignored" in message
    assert "data.palette {background: [0, 0, 0], object: [255, 255, 255]}" in message


def test_one_class_left_is_refused(write):
    root = write("abcd", [0, 255])
    with pytest.raises(UserError, match="1 of 2 classes occur"):
        fitted(root, ignore_value=255)


def test_value_outside_is_refused_before_training(write):
    root = write("abcd", [0, 1, 2])
    with pytest.raises(UserError) as said:
        fitted(root)
    assert "33.33%  outside the classes" in str(said.value)
    assert "data.zero_is ignore; else a name is missing" in str(said.value)
    assert labels_of(fitted(root, zero_is="ignore")).unique().tolist() == [0, 1, IGNORE]


def test_over_half_ignored_is_refused_unless_meant(write):
    root = write("abcd", [0, 0, 0, 1, 2])
    with pytest.raises(UserError, match="60% of the pixels are ignored"):
        fitted(root, zero_is="ignore")
    assert len(fitted(root, zero_is="ignore", check_masks=0).split("training")) == 3


# Splits


def test_fraction_is_a_matter_of_names_and_seed(write):
    letters = "abcdefghijklmnopqrst"
    root = write(letters, [0, 1])
    first, again, other = (fitted(root, split_seed=seed) for seed in (0, 0, 1))
    assert names(first, "validation") == names(again, "validation")
    assert names(first, "validation") != names(other, "validation")
    assert len(names(first, "validation")) == 5
    assert all_names(first) == [f"images/{letter}.jpg" for letter in letters]
    before = set(names(first, "validation"))
    write(["u", "v", "w", "x"], [0, 1])
    assert len(before & set(names(fitted(root), "validation"))) >= 4  # most stay


def test_seed_of_the_run_does_not_change_the_split(write):
    root = write("abcdefgh", [0, 1])
    splits = [names(fitted(root, seed=seed), "validation") for seed in range(4)]
    assert splits == splits[:1] * 4


def test_list_of_validation_images(write):
    root = write(["one/a", "one/b", "two/a", "two/c"], [0, 1])
    (root / "val.txt").write_text("one/a.jpg\n\nb.jpg\nc\n")
    data = fitted(root, val_fraction=None, val_list="val.txt")
    assert names(data, "validation") == ["images/one/a.jpg", "images/one/b.jpg", "images/two/c.jpg"]
    assert names(data, "training") == ["images/two/a.jpg"]


@pytest.mark.parametrize(("line", "said"), [("z.jpg", "no image with a mask"), ("a", "2 images")])
def test_wrong_list_of_validation_images(write, line, said):
    root = write(["one/a", "two/a", "two/b"], [0, 1])
    (root / "val.txt").write_text(f"b\n{line}\n")
    with pytest.raises(UserError, match=rf"1 of 2 lines .*'{line}': {said}"):
        fitted(root, val_fraction=None, val_list="val.txt")


def test_all_images_for_validation_is_refused(write):
    root = write("ab", [0, 1])
    (root / "val.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match="no images of 2 are left for training"):
        fitted(root, val_fraction=None, val_list="val.txt")


def test_the_run_keeps_its_list(write, tmp_path):
    root = write("abcdefgh", [0, 1])
    data = make_data(root)
    data.trainer = SimpleNamespace(is_global_zero=True, default_root_dir=tmp_path / "run")
    data.setup("fit")
    kept = tmp_path / "run" / "validation.txt"
    assert [f"images/{name}" for name in kept.read_text().split()] == names(data, "validation")
    again = fitted(root, val_fraction=None, val_list=str(kept))
    assert names(again, "validation") == names(data, "validation")


def test_other_splits_there_are_none(write):
    data = make_data(write("abcd", [0, 1]), test_split="testing")
    with pytest.raises(DataError, match=r"data\.test_split: there is no split 'testing'"):
        data.setup("test")


def test_training_batch(write):
    data = fitted(write("abcdefgh", [0, 1]))
    batch = next(iter(data.train_loader(steps=1)))
    assert batch["images"].shape == (2, 3, 16, 16)
    assert set(batch["masks"].unique().tolist()) <= {0, 1, IGNORE}
    assert torch.isin(batch["masks"], torch.tensor([0, 1])).any()


def test_prediction_needs_no_data(tmp_path):
    make_data(tmp_path / "nowhere").setup("predict")


# What is said without opening a picture


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"images": None}, "either by data.images and data.masks"),
        ({"pairs": "pairs.txt"}, "either by data.images and data.masks"),
        ({"masks": "msks"}, "data.masks: .*msks: no such folder"),
        ({"images": "images/*.tif"}, r"data.images: .*\*\.tif: no such folder, or no file like it"),
        ({"val_fraction": None}, r"either by data\.val_fraction"),
        ({"val_list": "val.txt"}, r"either by data\.val_fraction"),
        ({"val_fraction": None, "val_list": "val.txt"}, r"data\.val_list: no file .*val\.txt"),
    ],
)
def test_wrong_files(write, settings, said):
    with pytest.raises(UserError, match=said):
        fitted(write("abcd", [0, 1]), **settings)
