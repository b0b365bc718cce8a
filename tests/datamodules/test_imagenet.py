"""The ImageNet datamodule: the forms its folder may have, batches, wrong data, check-data."""

import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.imagenet_info import ImageNetInfo

from datamodules import ImageNet
from datamodules.checking import class_table, inspect_all
from datamodules.classification import ClassificationDataset
from datamodules.images import DataError
from datamodules.layouts import LAYOUTS, check_root
from datamodules.sample_data import write_sample
from datamodules.shards import find_shards, write_shards
from gmf_platform.distributed.order import SampleKey
from gmf_platform.errors import UserError


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("drawn") / "imagenet"
    write_sample("imagenet", root, train=16, val=6, size=64, seed=0)
    return root


@pytest.fixture
def root(drawn, tmp_path):
    """A copy that may be spoilt."""
    return shutil.copytree(drawn, tmp_path / "imagenet")


def module(root, **settings):
    small = {"image_size": 32, "global_batch_size": 4, "num_workers": 0, "seed": 1}
    return ImageNet(str(root), **{**small, **settings})


def labels(data, split):
    samples = data.samples(split)
    return {samples.id(i): samples.label(i) for i in range(len(samples))}


def by_folder(root, folder, names):
    return {
        path.relative_to(root).as_posix(): names.index(path.parent.name)
        for path in (root / folder).glob("*/*")
    }


def test_class_folders_in_train_and_val(drawn):
    data = module(drawn)
    data.setup("fit")
    names = sorted(path.name for path in (drawn / "train").iterdir())
    assert data.class_names == names
    assert labels(data, "training") == by_folder(drawn, "train", names)
    assert labels(data, "validation") == by_folder(drawn, "val", names)
    assert data.steps_per_epoch() == 16 / 4


def test_training_batches(drawn):
    data = module(drawn)
    batches = list(data.train_loader(steps=8))
    assert len(batches) == 8
    truth = labels(data, "training")
    for batch in batches:
        assert set(batch) == {"images", "labels", "sizes", "original_sizes", "ids"}
        assert (batch["images"].shape, batch["images"].dtype) == ((4, 3, 32, 32), torch.uint8)
        assert batch["images"].is_contiguous(memory_format=torch.channels_last)
        assert batch["labels"].dtype == torch.int64
        assert batch["labels"].tolist() == [truth[name] for name in batch["ids"]]
        assert batch["sizes"].tolist() == [[32, 32]] * 4
        assert batch["original_sizes"].tolist() == [[64, 64]] * 4
    for epoch in (batches[:4], batches[4:]):
        assert sorted(name for batch in epoch for name in batch["ids"]) == sorted(truth)
    again = list(module(drawn, num_workers=2).train_loader(steps=8))
    assert all(torch.equal(a["images"], b["images"]) for a, b in zip(batches, again, strict=True))


def test_ranks_share_the_batches(drawn):
    whole = next(iter(module(drawn).train_loader(steps=1)))
    parts = [next(iter(module(drawn).train_loader(steps=1, rank=r, world_size=2))) for r in (0, 1)]
    assert torch.equal(whole["images"], torch.cat([part["images"] for part in parts]))


def test_evaluation_has_each_image_once_whatever_the_ranks(drawn):
    data = module(drawn, eval_batch_size=4)
    truth = labels(data, "validation")
    seen = [
        (name, label)
        for rank in (0, 1)
        for batch in data.eval_loader("validation", rank=rank, world_size=2)
        for name, label in zip(batch["ids"], batch["labels"].tolist(), strict=True)
    ]
    assert sorted(seen) == sorted(truth.items())


def test_prediction_needs_no_data(drawn, tmp_path):
    paths = sorted((drawn / "val").glob("*/*"))
    data = module(tmp_path / "nowhere", classes=["x", "y"], eval_batch_size=4)
    data.setup("predict")
    assert data.class_names == ["x", "y"]
    batches = list(data.predict_loader(paths))
    assert [name for batch in batches for name in batch["ids"]] == [str(path) for path in paths]
    assert all("labels" not in batch for batch in batches)
    with_labels = module(drawn).split("validation")
    by_name = {with_labels[SampleKey(0, i)]["id"]: with_labels[SampleKey(0, i)] for i in range(6)}
    first = by_name[paths[0].relative_to(drawn).as_posix()]
    assert torch.equal(batches[0]["images"][0].permute(1, 2, 0), torch.from_numpy(first["image"]))


def test_without_data_the_classes_are_imagenets(tmp_path):
    data = ImageNet(str(tmp_path / "nowhere"))
    assert data.class_names == ImageNetInfo("imagenet-1k").label_names()
    assert data.class_names == sorted(data.class_names)


@pytest.mark.parametrize(("size", "resize"), [(224, 256), (384, 438)])
def test_evaluation_is_at_the_recipes_size(size, resize):
    assert ImageNet("nowhere", image_size=size)._eval_transform.resize == resize


def flatten(root):
    """The validation folder as ILSVRC2012 has it; returns the class of each image."""
    classes = {}
    for number, path in enumerate(sorted((root / "val").glob("*/*")), start=1):
        name = f"ILSVRC2012_val_{number:08d}"
        classes[name] = path.parent.name
        path.rename(root / "val" / f"{name}.JPEG")
    for folder in (root / "val").iterdir():
        if folder.is_dir():
            folder.rmdir()
    return classes


def test_flat_validation_folder(root):
    classes = flatten(root)
    with pytest.raises(UserError, match="nothing says their classes"):
        module(root).setup("fit")
    lines = [f"{name},{wnid} 1 2 3 4" for name, wnid in classes.items()]
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *lines]))
    data = module(root)
    data.setup("fit")
    names = data.class_names
    assert labels(data, "validation") == {
        f"val/{name}.JPEG": names.index(wnid) for name, wnid in classes.items()
    }
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *lines[1:]]))
    with pytest.raises(DataError, match=r"val_00000001\.JPEG: is not in the list of labels"):
        module(root).setup("fit")


def fitted(root, run, **settings):
    data = module(root, **settings)
    data.trainer = SimpleNamespace(is_global_zero=True, default_root_dir=str(run))
    data.setup("fit")
    return data


@pytest.mark.parametrize("folder", ["train", "."])
def test_one_tree_without_a_split(root, tmp_path, folder):
    shutil.rmtree(root / "val")
    root = root / folder if folder == "train" else root
    data = fitted(root, tmp_path / "run", val_fraction=0.3)
    training, validation = labels(data, "training"), labels(data, "validation")
    assert not set(training) & set(validation)
    counts = np.bincount(list((training | validation).values()))
    held_out = np.bincount(list(validation.values()))
    assert counts.sum() == 16
    assert held_out.tolist() == [max(1, round(0.3 * count)) for count in counts]
    kept = tmp_path / "run" / "validation.txt"
    assert kept.read_text().splitlines() == sorted(validation)
    again = module(root, val_list=str(kept))
    assert labels(again, "validation") == validation
    others = labels(module(root, val_fraction=0.3, split_seed=1), "validation")
    assert others != validation


def test_most_stay_where_they_are_when_images_are_added(root):
    before = labels(module(root, val_fraction=0.25), "validation")
    for path in (root / "train").glob("*/*"):
        shutil.copy(path, path.with_name(f"more_{path.name}"))
    after = labels(module(root, val_fraction=0.25), "training")
    assert len(set(before) & set(after)) <= len(before) / 2


def test_a_class_of_one_image_is_trained_on(root):
    for folder in sorted((root / "train").iterdir())[:2]:
        for path in sorted(folder.iterdir())[1:]:
            path.unlink()
    data = module(root, val_fraction=0.5)
    assert {0, 1} <= set(labels(data, "training").values())
    assert not {0, 1} & set(labels(data, "validation").values())


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 3])
def test_wrong_fraction(fraction):
    with pytest.raises(UserError, match=r"data\.val_fraction: .* is no share"):
        ImageNet("nowhere", val_fraction=fraction)


def test_another_folder_with_labels_can_be_tested(root):
    shutil.copytree(root / "val", root / "holdout")
    data = module(root, test_split="holdout")
    data.setup("test")
    assert len(data.split("holdout")) == 6
    with pytest.raises(DataError, match=r"nothing: there is no such folder"):
        data.split("nothing")


def test_missing_parts(root, tmp_path):
    with pytest.raises(UserError, match=r"ImageNet: the folder .*nowhere does not exist"):
        module(tmp_path / "nowhere").setup("fit")
    tree = root / "train"
    with pytest.raises(UserError, match=r"no files in train, val(.|\n)*data\.val_fraction"):
        module(tree).setup("fit")
    with pytest.raises(DataError, match=r"train: .*If each of them is a class, say with"):
        module(tree).samples("training")


def test_layout_check_of_each_form(drawn, tmp_path):
    layout = LAYOUTS["datamodules.ImageNet"]
    check_root(drawn, layout)
    check_root(drawn / "train", layout, is_divided=False)
    with pytest.raises(UserError):
        check_root(drawn / "train", layout)
    (tmp_path / "imagenet-train-000.tar").touch()
    with pytest.raises(UserError, match="has no files in val"):
        check_root(tmp_path, layout)
    (tmp_path / "imagenet-val-000.tar").touch()
    check_root(tmp_path, layout)


def test_class_missing_in_validation(root):
    gone = sorted((root / "val").iterdir())[1]
    shutil.rmtree(gone)
    with pytest.raises(DataError, match=rf"val/{gone.name}: there is no such folder"):
        module(root).setup("fit")
    data = module(root, allow_empty_classes=True)
    data.setup("fit")
    assert 1 not in labels(data, "validation").values()


def test_class_that_is_in_validation_only(root):
    (root / "val/zebra").mkdir()
    with pytest.raises(DataError, match=r"val/zebra: this folder is none of the 5 classes"):
        module(root).setup("fit")


def test_named_classes_give_the_labels(root):
    names = sorted((path.name for path in (root / "train").iterdir()), reverse=True)
    data = module(root, classes=names)
    assert labels(data, "training") == by_folder(root, "train", names)
    with pytest.raises(DataError, match="this folder is none of the 3 classes"):
        module(root, classes=names[:3]).setup("fit")


def spoil(root):
    """An empty class, a file that is cut off, and one that is no image."""
    bad = sorted((root / "train").glob("*/*"))
    bad[0].write_bytes(bad[0].read_bytes()[:200])
    bad[5].write_bytes(b"no image")
    (root / "train/zebra").mkdir()
    return bad[0], bad[5]


def test_check_data_lists_all_that_is_wrong(root):
    cut, none = spoil(root)
    data = module(root)
    report = inspect_all(data.inspectable("training"), workers=0)
    said = "\n".join(report.lines())
    assert report.num_problems == 3
    assert "classes without images: 1\n" in said
    assert f"{root}/train/zebra: has no images" in said
    assert f"truncated: 1\n  {cut}: is cut off" in said
    assert f"unreadable: 1\n  {none}: is not an image" in said
    assert report.unit == "images"
    truth = by_folder(root, "train", data.class_names)
    assert report.counts == {i: list(truth.values()).count(i) for i in range(5)}
    image, label = data.inspectable("training").read(report.sound[0])
    assert (image.shape, label) == ((64, 64, 3), 0)
    rows = class_table({"training": report}, data.class_names)
    assert rows[-1] == "never in training: zebra"


def test_check_data_of_one_class(root):
    for folder in sorted((root / "train").iterdir())[1:]:
        shutil.rmtree(folder)
    data = module(root)
    report = inspect_all(data.inspectable("training"), workers=0)
    assert "the images are of 1 classes" in "\n".join(report.lines())


def test_a_broken_image_stops_training_by_its_name(root):
    cut, _ = spoil(root)
    (root / "train/zebra").rmdir()
    data = module(root, num_workers=1)
    with pytest.raises(DataError, match=r"is cut off|is not an image"):
        list(data.train_loader(steps=8))
    dataset = module(root).split("training")
    index = labels(data, "training")
    with pytest.raises(DataError, match=f"{cut}: is cut off"):
        dataset[SampleKey(0, list(index).index(cut.relative_to(root).as_posix()))]


def test_images_of_every_kind_give_rgb(root):
    folder = min((root / "train").iterdir())
    with Image.open(min(folder.iterdir())) as file:
        image = file.convert("RGB")
    for path in folder.iterdir():
        path.unlink()
    image.convert("L").save(folder / "grey.JPEG")
    image.convert("CMYK").save(folder / "cmyk.Jpg", "JPEG")
    image.convert("P").save(folder / "palette.PNG", "PNG")
    image.convert("RGBA").save(folder / "alpha.png")
    Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    image.save(folder / "a.webp")
    dataset = module(root).split("training")
    assert isinstance(dataset, ClassificationDataset)
    for i in range(6):
        for training in (True, False):
            data = module(root).split("training", training=training)
            assert data[SampleKey(0, i)]["image"].shape == (32, 32, 3)


@pytest.mark.data
def test_real_photos(real_data):
    root = real_data("imagenette_mini")
    data = ImageNet(str(root), global_batch_size=50, num_workers=0)
    assert len(data.class_names) == 10
    assert data.steps_per_epoch() == 30
    batch = next(iter(data.train_loader(steps=1)))
    assert batch["images"].shape == (50, 3, 224, 224)
    counts = np.bincount(list(labels(data, "validation").values()))
    assert counts.tolist() == [40] * 10


def test_cut_off_shards_of_both_splits_are_said_at_once(drawn, tmp_path):
    data = module(drawn)
    for split, name in (("training", "train"), ("validation", "val")):
        names = data.class_names
        write_shards(data.samples(split), tmp_path, split=name, class_names=names, name="drawn")
        os.truncate(find_shards(tmp_path, name)[0], 700)
    with pytest.raises(DataError, match=r"drawn-train-000000.*cut off.*\n.*drawn-val-000000"):
        module(tmp_path).inspectable("training")


def test_a_class_named_twice(drawn):
    with pytest.raises(UserError, match=r"data\.classes: n2: named more than once"):
        module(drawn, classes=["n2", "n1", "n2"])


def test_size_of_training_images():
    assert ImageNet("none", image_size=384).training_size == (384, 384)
