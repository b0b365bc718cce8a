"""ADE20K and sets in its layout: classes, labels, batches, and what is said of wrong data."""

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import ADE20K
from datamodules.images import DataError
from datamodules.layouts import LAYOUTS, check_root
from datamodules.pairs import pair_folders
from datamodules.segmentation import pad_images
from gmf_platform.errors import UserError


def make_data(root, stage="validate", **settings):
    settings = {"global_batch_size": 2, "num_workers": 0, **settings}
    data = ADE20K(str(root), **settings)
    data.setup(stage)
    return data


def read_labels(path):
    return np.array(Image.open(path))


# Classes


def test_official_classes_without_the_file(tmp_path):
    names = ADE20K(str(tmp_path)).class_names
    assert len(names) == 150
    assert names[:4] == ["wall", "building", "sky", "floor"]
    assert names[-1] == "flag"


@pytest.mark.data
def test_official_classes_from_the_file(real_data, tmp_path):
    names = make_data(real_data("ade20k_mini")).class_names
    assert names == ADE20K(str(tmp_path)).class_names  # the shipped list is the official one


def test_classes_of_the_sample(sample_ade20k):
    names = make_data(sample_ade20k).class_names
    assert len(names) == len((sample_ade20k / "objectInfo150.txt").read_text().splitlines()) - 1


@pytest.mark.data
def test_classes_from_a_text_file(real_data):
    root = real_data("camvid_mini")
    names = make_data(root, classes=str(root / "classes.txt")).class_names
    assert len(names) == 11
    assert names[0] == "sky"
    assert names[6] == "sign_symbol"
    assert names[-1] == "bicyclist"


def test_wrong_class_lists_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"data\.classes: no file nowhere\.txt"):
        ADE20K(str(tmp_path), classes="nowhere.txt")
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        ADE20K(str(tmp_path), classes=str(empty))
    with pytest.raises(UserError, match="1 classes"):
        ADE20K(str(tmp_path), classes=["only"])
    with pytest.raises(UserError, match="255 classes; 2 to 254 are possible"):
        ADE20K(str(tmp_path), classes=[str(i) for i in range(255)])


# Labels


def test_labels_are_mapped_and_keep_their_size_in_evaluation(make_folder):
    root = make_folder()
    (batch, _) = make_data(root, classes=["x", "y"], scale=(200, 80)).eval_loader("validation")
    original = read_labels(root / "annotations/validation/d.png")
    expected = np.choose(original, [255, 0, 1])
    (mask,) = batch["masks"]
    assert mask.dtype == torch.uint8
    assert np.array_equal(mask, expected)
    assert batch["images"].shape == (1, 3, 80, 100)
    assert batch["sizes"].tolist() == [[80, 100]]
    assert batch["original_sizes"].tolist() == [[40, 50]]
    assert batch["ids"] == ["d"]


def test_255_in_a_file_is_ignored_too(make_folder):
    root = make_folder()
    path = root / "annotations/validation/d.png"
    labels = read_labels(path)
    labels[:5] = 255
    Image.fromarray(labels).save(path)
    (batch, _) = make_data(root, classes=["x", "y"]).eval_loader("validation")
    assert (batch["masks"][0][:5] == 255).all()
    assert set(batch["masks"][0].unique().tolist()) == {0, 1, 255}


def test_254_classes_use_every_label(make_folder):
    """The most there can be: a file's 255 is ignored."""
    root = make_folder()
    path = root / "annotations/validation/d.png"
    labels = read_labels(path)
    labels[0, 0] = 254
    Image.fromarray(labels).save(path)
    (batch, _) = make_data(root, classes=[str(i) for i in range(254)]).eval_loader("validation")
    assert batch["masks"][0][0, 0] == 253


@pytest.mark.parametrize("label", [3, 254])
def test_label_outside_the_classes_is_refused(make_folder, label):
    root = make_folder()
    path = root / "annotations/validation/d.png"
    labels = read_labels(path)
    labels[7, 3] = label
    Image.fromarray(labels).save(path)
    with pytest.raises(DataError, match=f"label {label}, but there are 2 classes") as said:
        list(make_data(root, classes=["x", "y"]).eval_loader("validation"))
    assert str(said.value).startswith(f"{path}:")


def test_16_bit_label_outside_the_classes_is_refused(make_folder):
    """511 would be label 255 if it were cut to 8 bits."""
    root = make_folder()
    path = root / "annotations/validation/d.png"
    labels = read_labels(path).astype(np.uint16)
    labels[7, 3] = 511
    Image.fromarray(labels).save(path)
    with pytest.raises(DataError, match="label 511"):
        list(make_data(root, classes=["x", "y"]).eval_loader("validation"))


# Wrong folders


def test_missing_partner_is_named(make_folder):
    root = make_folder()
    (root / "annotations/training/b.png").unlink()
    with pytest.raises(DataError, match=r"1 of 3 images .* the first is b\.jpg.* be b\.png"):
        make_data(root, "fit", classes=["x", "y"])


def test_masks_without_an_image_do_no_harm(make_folder):
    root = make_folder()
    (root / "images/training/b.jpg").unlink()
    pairs = pair_folders(root / "images/training", root / "annotations/training").whole()
    assert [image.name for image, _ in pairs] == ["a.jpg", "c.jpg"]


def test_folder_of_other_files_is_refused(make_folder):
    root = make_folder()
    for path in (root / "images/training").iterdir():
        path.rename(path.with_suffix(".txt"))
    with pytest.raises(DataError, match=r"no \.jpg or \.png images under .*training"):
        make_data(root, "fit", classes=["x", "y"])


def test_mask_of_another_size_is_named(make_folder):
    root = make_folder()
    path = root / "annotations/validation/d.png"
    Image.fromarray(read_labels(path).T.copy()).save(path)
    with pytest.raises(DataError, match=r"d\.png: is 40 x 50 pixels, its image d\.jpg is 50 x 40"):
        list(make_data(root, classes=["x", "y"]).eval_loader("validation"))


def test_missing_root_says_where_to_get_it(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    with pytest.raises(UserError) as said:
        make_data(root, "fit")
    message = str(said.value)
    assert f"the folder {root} does not exist" in message
    assert "sceneparsing.csail.mit.edu" in message
    assert "python -m gmf_platform sample-data ade20k " in message
    assert "--data.root" in message


def test_incomplete_root_names_what_is_missing(make_folder):
    root = make_folder()
    for path in (root / "annotations/validation").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"has no files in annotations/validation\."):
        check_root(root, LAYOUTS["datamodules.ADE20K"])


def test_prediction_needs_no_data(tmp_path):
    make_data(tmp_path / "nowhere", "predict")


# Batches


def test_training_batch(sample_ade20k):
    data = make_data(sample_ade20k, "fit", crop_size=64, scale=(256, 64), global_batch_size=4)
    batch = next(iter(data.train_loader(steps=1)))
    assert batch["images"].shape == (4, 3, 64, 64)
    assert batch["images"].dtype == torch.uint8
    assert batch["images"].is_contiguous(memory_format=torch.channels_last)
    assert batch["masks"].shape == (4, 64, 64)
    assert batch["masks"].dtype == torch.uint8
    labels = batch["masks"][batch["masks"] != 255]
    assert labels.max() < len(data.class_names)
    assert batch["original_sizes"].tolist() == [[96, 96]] * 4
    assert len(set(batch["ids"])) == 4
    for image, mask, (height, width) in zip(
        batch["images"], batch["masks"], batch["sizes"].tolist(), strict=True
    ):
        assert not image[:, height:].any()
        assert not image[:, :, width:].any()
        assert (mask[height:] == 255).all()
        assert (mask[:, width:] == 255).all()
    assert (batch["sizes"] < 64).any()  # so that the loop above looks at padding


def test_image_and_mask_stay_together(make_folder):
    """A mask drawn into the image's brightness is found there again after augmentation."""
    root = make_folder((64, 64))
    blocks = np.kron(np.arange(16).reshape(4, 4) % 2, np.ones((16, 16))).astype(np.uint8)
    for name in "abc":
        Image.fromarray(np.stack([blocks * 200] * 3, -1)).save(root / f"images/training/{name}.jpg")
        Image.fromarray(blocks + 1).save(root / f"annotations/training/{name}.png")
    data = make_data(root, "fit", classes=["x", "y"], crop_size=48, scale=(64, 64))
    for batch in data.train_loader(steps=6):
        bright = batch["images"].float().mean(1)
        for image, mask in zip(bright, batch["masks"], strict=True):
            assert image[mask == 1].mean() > image[mask == 0].mean() + 50


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_deals_each_image_once(sample_ade20k, batch_size, world_size):
    data = make_data(sample_ade20k, eval_batch_size=batch_size)
    loaders = [
        data.eval_loader("validation", rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    names = [name for loader in loaders for batch in loader for name in batch["ids"]]
    assert sorted(names) == sorted(path.stem for path, _ in data.split("validation").pairs)
    assert sum(len(loader.batches) for loader in loaders) == -(-6 // batch_size)


@pytest.mark.data
def test_evaluation_groups_real_images_of_like_shape(real_data):
    data = make_data(real_data("ade20k_mini"), eval_batch_size=4, scale=(512, 128))
    padded, original = 0, {}
    for batch in data.eval_loader("validation"):
        area = batch["images"].shape[2] * batch["images"].shape[3]
        padded += sum(area - height * width for height, width in batch["sizes"].tolist())
        assert batch["images"].is_contiguous(memory_format=torch.channels_last)
        for name, mask, size in zip(
            batch["ids"], batch["masks"], batch["original_sizes"].tolist(), strict=True
        ):
            assert list(mask.shape) == size
            original[name] = mask
    assert len(original) == 14
    in_file_order = make_data(real_data("ade20k_mini"), eval_batch_size=1, scale=(512, 128))
    for batch in in_file_order.eval_loader("validation"):
        assert torch.equal(batch["masks"][0], original.pop(batch["ids"][0]))
    assert not original
    sizes = [batch["sizes"][0].tolist() for batch in in_file_order.eval_loader("validation")]
    groups = [sizes[i : i + 4] for i in range(0, 14, 4)]
    unsorted = sum(
        max(h for h, _ in g) * max(w for _, w in g) - h * w for g in groups for h, w in g
    )
    assert padded < unsorted


@pytest.mark.data
def test_real_training_batches_are_whole(real_data):
    data = make_data(real_data("ade20k_mini"), "fit", crop_size=128, scale=(512, 128))
    batches = list(data.train_loader(steps=16))
    assert sorted(name for batch in batches for name in batch["ids"]) == sorted(
        path.stem for path, _ in data.split("training").pairs
    )
    assert all(batch["masks"].shape == (2, 128, 128) for batch in batches)


def test_prediction_takes_any_files(sample_ade20k, make_folder):
    paths = [
        *sorted((sample_ade20k / "images/validation").iterdir())[:2],
        make_folder((30, 70)) / "images/training/a.jpg",
    ]
    data = make_data("nowhere", "predict", classes=["x", "y"], scale=(256, 64), eval_batch_size=2)
    loaders = [data.predict_loader(paths, rank=rank, world_size=2) for rank in range(2)]
    batches = [list(loader) for loader in loaders]
    # Only images of one size share a batch: nothing is padded.
    ids = [[batch["ids"] for batch in part] for part in batches]
    assert ids == [[[str(paths[0]), str(paths[1])]], [[str(paths[2])]]]
    last = batches[1][0]
    assert "masks" not in last
    assert last["original_sizes"].tolist() == [[30, 70]]
    assert last["images"].shape == (1, 3, 64, 149)  # 64 / 30 times as large


def test_pad_images_joins_unequal_sizes():
    generator = np.random.default_rng(0)
    images = [generator.integers(1, 256, (h, w, 3), dtype=np.uint8) for h, w in ((5, 9), (7, 4))]
    batch = pad_images(images)
    assert batch.shape == (2, 3, 7, 9)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    for padded, image in zip(batch.permute(0, 2, 3, 1).numpy(), images, strict=True):
        height, width = image.shape[:2]
        assert np.array_equal(padded[:height, :width], image)
        assert padded.sum() == image.sum(dtype=int)


def test_validation_gives_the_same_twice(sample_ade20k):
    data = make_data(sample_ade20k)
    loader = data.eval_loader("validation")
    for a, b in zip(loader, loader, strict=True):
        assert torch.equal(a["images"], b["images"])


def test_steps_per_epoch(sample_ade20k):
    assert make_data(sample_ade20k, "fit", global_batch_size=8).steps_per_epoch() == 1.5


def test_size_of_training_images():
    assert ADE20K("none", crop_size=64).training_size == (64, 64)
