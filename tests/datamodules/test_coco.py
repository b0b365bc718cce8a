"""COCO folders as a user has them: which images there are, their batches, and what is refused."""

import json
import pickle
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO as Reference

from datamodules import COCO
from datamodules.checking import inspect_all
from datamodules.images import DataError, Flaw
from datamodules.sample_data import write_sample
from gmf_platform.distributed.order import SampleKey
from gmf_platform.errors import UserError

SMALL = {"scale": (120, 80), "global_batch_size": 4, "num_workers": 0}
BOX = {"bbox": [10, 20, 30, 40]}


@pytest.fixture(scope="module")
def sample_coco(tmp_path_factory):
    root = tmp_path_factory.mktemp("sample") / "coco"
    write_sample("coco", root, train=30, val=10, size=96, seed=0)
    return root


def make_data(root, **settings):
    return COCO(str(root), **SMALL | settings)


def ready(root, **settings):
    data = make_data(root, **settings)
    data.setup("fit")
    return data


def flat(batch):
    """A batch as plain values."""
    targets = [{k: torch.as_tensor(v).tolist() for k, v in t.items()} for t in batch["targets"]]
    return batch["ids"], batch["sizes"].tolist(), batch["images"].sum().item(), targets


# --- batches


def test_training_batches(sample_coco):
    data = ready(sample_coco, with_masks=True, scale=(200, 160))
    assert data.class_names[:3] == ["disc", "square", "triangle"]
    for batch in data.train_loader(steps=4):
        images = batch["images"]
        assert images.dtype == torch.uint8
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert images.shape[:2] == (4, 3)
        assert images.shape[2] % 32 == images.shape[3] % 32 == 0
        for image, size, target in zip(images, batch["sizes"], batch["targets"], strict=True):
            height, width = size.tolist()
            assert not image[:, height:].any()
            assert not image[:, :, width:].any()
            boxes, masks = target["boxes"], target["masks"]
            assert (boxes.dtype, target["labels"].dtype) == (torch.float32, torch.int64)
            assert (masks.dtype, masks.shape[1:]) == (torch.uint8, images.shape[2:])
            assert len(boxes) == len(masks) == len(target["labels"]) > 0
            assert (boxes[:, 2:] - boxes[:, :2] >= 1).all()
            assert (boxes >= 0).all()
            assert (boxes[:, 2:] <= torch.tensor([width, height])).all()
            assert 0 <= target["labels"].min() <= target["labels"].max() < len(data.class_names)
            for box, mask in zip(boxes, masks, strict=True):  # of the drawn set they agree
                rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
                around = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
                assert box.tolist() == pytest.approx([int(x) for x in around], abs=1.5)


def test_boxes_alone(sample_coco):
    (batch,) = ready(sample_coco).train_loader(steps=1)
    assert all(target.keys() == {"boxes", "labels", "crowd", "seed"} for target in batch["targets"])


def test_workers_ranks_and_restarts_change_nothing(sample_coco):
    settings = {"with_masks": True, "multi_scale": [48, 64, 80], "crop_branch": True}
    whole = [flat(b) for b in ready(sample_coco, **settings).train_loader(steps=9)]
    loader = ready(sample_coco, num_workers=2, **settings).train_loader(steps=9)
    assert [flat(b) for b in loader] == whole
    loader.close()
    resumed = ready(sample_coco, **settings).train_loader(steps=9)
    resumed.load_state_dict(
        {"samples_consumed": 20, "num_samples": resumed.batches.order.num_samples}
    )
    assert [flat(b) for b in resumed] == whole[5:]
    data = ready(sample_coco, **settings)
    ranks = [data.train_loader(steps=9, rank=rank, world_size=2) for rank in range(2)]
    for (ids, sizes, _, targets), *parts in zip(whole, *ranks, strict=True):
        halves = [flat(part) for part in parts]
        assert [i for half in halves for i in half[0]] == ids
        assert [s for half in halves for s in half[1]] == sizes
        seeds = [target["seed"] for half in halves for target in half[3]]
        assert seeds == [target["seed"] for target in targets]


def test_seeds_and_epochs_differ(sample_coco):
    data = ready(sample_coco)
    dataset = data.split("training")
    seeds = [dataset[SampleKey(epoch, i)]["seed"] for epoch in range(2) for i in range(8)]
    assert len(set(seeds)) == 16
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    assert dataset[SampleKey(0, 3)]["seed"] == seeds[3]
    other = ready(sample_coco, seed=1).split("training")
    assert other[SampleKey(0, 3)]["seed"] != seeds[3]


def test_jitter_and_copy_paste(sample_coco):
    settings = {"jitter": (0.1, 2.0), "jitter_size": 96, "with_masks": True}
    plain = list(ready(sample_coco, **settings).train_loader(steps=8))
    pasted = list(ready(sample_coco, copy_paste=1.0, **settings).train_loader(steps=8))
    again = list(ready(sample_coco, copy_paste=1.0, **settings).train_loader(steps=8))
    assert [flat(b) for b in pasted] == [flat(b) for b in again]
    assert all(tuple(b["images"].shape[2:]) == (96, 96) for b in plain + pasted)

    def count(batches):
        return sum(len(target["boxes"]) for batch in batches for target in batch["targets"])

    assert count(pasted) > 1.2 * count(plain)
    for target in (t for batch in pasted for t in batch["targets"]):
        assert (target["masks"].sum(0) <= 1).all()  # what covers is taken from what is covered


def test_settings_that_exclude_each_other(sample_coco):
    with pytest.raises(UserError, match=r"data.jitter is one way"):
        make_data(sample_coco, jitter=(0.1, 2.0), crop_branch=True)
    with pytest.raises(UserError, match=r"data.copy_paste needs data.jitter"):
        make_data(sample_coco, copy_paste=0.5, with_masks=True)


# --- the order of images


@pytest.fixture
def two_shapes(make_coco):
    images = {i: (120, 80) if i % 3 else (80, 120) for i in range(1, 31)}
    for split in ("train", "val"):
        make_coco(images, [BOX | {"image_id": i} for i in images], split=split)

    return images


def test_steps_are_of_one_orientation(two_shapes, tmp_path):
    data = ready(tmp_path)
    shapes = [tuple(b["images"].shape[2:]) for b in data.train_loader(steps=20)]
    assert set(shapes) == {(96, 128), (128, 96)}
    mixed = ready(tmp_path, aspect_grouping=False)
    shapes = [tuple(b["images"].shape[2:]) for b in mixed.train_loader(steps=20)]
    assert (128, 128) in shapes


@pytest.mark.parametrize("grouped", [True, False])
def test_the_first_step_has_the_largest_shape(two_shapes, tmp_path, grouped):
    settings = {"scale": (240, 90), "aspect_grouping": grouped}  # the long side is never reached
    data = ready(tmp_path, **settings)
    first, *rest = (b["images"].shape for b in data.train_loader(steps=12))
    assert set(first[2:]) == ({256, 96} if grouped else {256})
    assert all(shape.numel() < first.numel() for shape in rest)
    for rank in range(2):  # on each device, and in each of its micro-batches
        shapes = [
            b["images"].shape[2:] for b in data.train_loader(steps=2, rank=rank, world_size=2)
        ]
        assert [set(shape) == set(first[2:]) for shape in shapes] == [True, False]
    for single, devices in (({"per_device_batch_size": 1}, 1), ({}, 4)):
        loader = ready(tmp_path, **single, **settings).train_loader(steps=2, world_size=devices)
        is_largest = [set(b["images"].shape[2:]) == {256, 96} for b in loader]
        first = 4 // devices
        assert is_largest == [True] * first + [False] * first


def test_crops_may_turn_an_image(two_shapes, tmp_path):
    data = ready(tmp_path, scale=(240, 90), crop_branch=True)
    first, *_ = (b["images"].shape for b in data.train_loader(steps=1))
    assert first[2:] == (256, 256)


def test_images_that_are_not_trained_with(make_coco, tmp_path):
    images = {1: (60, 60), 2: (60, 60), 3: (31, 90), 4: (60, 60), 5: (60, 60)}
    crowd = BOX | {"image_id": 4, "iscrowd": 1}
    given = [BOX | {"image_id": 1}, {"bbox": [1, 1, 9, 9], "image_id": 3}, crowd]
    given.append({"bbox": [5, 5, 0, 9], "image_id": 5})
    for split in ("train", "val"):
        make_coco(images, given, split=split)
    settings = {"global_batch_size": 1}
    assert len(ready(tmp_path, **settings).split("training")) == 1
    assert len(ready(tmp_path, min_size=31, **settings).split("training")) == 2
    whole = ready(tmp_path, filter_empty=False, **settings)
    assert len(whole.split("training")) == 5
    assert len(whole.split("validation")) == 5
    batches = list(whole.train_loader(steps=5))
    by_id = {batch["ids"][0]: batch["targets"][0] for batch in batches}
    assert by_id[2]["boxes"].shape == (0, 4)
    assert by_id[2]["labels"].shape == (0,)
    assert (by_id[4]["boxes"].shape, by_id[4]["crowd"].shape) == ((0, 4), (1, 4))


# --- evaluation and prediction


def test_evaluation_batches(sample_coco):
    data = ready(sample_coco, with_masks=True)
    batches = list(data.eval_loader("validation"))
    path = sample_coco / "annotations/instances_val2017.json"
    reference = Reference(path)
    assert [b["ids"] for b in batches] == [[i] for i in sorted(reference.getImgIds())]
    for batch in batches:
        assert "targets" not in batch
        (number,), (truth,) = batch["ids"], batch["truth"]
        wanted = reference.loadAnns(reference.getAnnIds(number))
        boxes = np.array([a["bbox"] for a in wanted], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        assert np.allclose(truth["boxes"], boxes)
        assert truth["crowd"].tolist() == [bool(a["iscrowd"]) for a in wanted]
        masks = [reference.annToRLE(a)["counts"] for a in wanted]
        assert [rle["counts"] for rle in truth["rles"]] == masks
        assert batch["original_sizes"].tolist() == [[96, 96]]
        assert batch["sizes"].tolist() == [[80, 80]]
        assert batch["images"].shape == (1, 3, 96, 96)


def test_like_shapes_share_an_evaluation_batch(two_shapes, tmp_path):
    data = ready(tmp_path, eval_batch_size=3)
    batches = list(data.eval_loader("validation"))
    assert sorted(i for batch in batches for i in batch["ids"]) == list(two_shapes)
    mixed = [b for b in batches if len(set(map(tuple, b["original_sizes"].tolist()))) > 1]
    assert len(mixed) == 1
    parts = [data.eval_loader("validation", rank=rank, world_size=3) for rank in range(3)]
    dealt = [batch["ids"] for part in parts for batch in part]
    assert sorted(dealt) == sorted(batch["ids"] for batch in batches)


def test_scales_for_test_time_augmentation(sample_coco):
    data = ready(sample_coco, eval_scales=[40, 120], eval_batch_size=2)
    batch = next(iter(data.eval_loader("validation")))
    assert [v["images"].shape[2:] for v in batch["scaled"]] == [(64, 64), (128, 128)]
    assert [v["sizes"].tolist() for v in batch["scaled"]] == [[[40, 40]] * 2, [[120, 120]] * 2]
    assert batch["sizes"].tolist() == [[80, 80]] * 2
    assert "scaled" not in next(iter(data.train_loader(steps=1)))


def test_thin_images_are_padded_to_what_backbones_take(make_coco, tmp_path):
    for split in ("train", "val"):
        make_coco({1: (400, 40)}, [{"bbox": [1, 1, 90, 30]}], split=split)
    data = ready(tmp_path, global_batch_size=1)
    for batch in (
        next(iter(data.eval_loader("validation"))),
        next(iter(data.train_loader(steps=2))),
    ):
        assert batch["sizes"].tolist() == [[12, 120]]
        assert batch["images"].shape[2] >= 64


def test_prediction_needs_no_data(sample_coco, tmp_path):
    data = make_data(tmp_path / "nowhere", classes=["x", "y"])
    data.setup("predict")
    assert data.class_names == ["x", "y"]
    paths = sorted((sample_coco / "val2017").iterdir())[:2]
    batches = list(data.predict_loader(paths))
    assert [b["ids"] for b in batches] == [[str(path)] for path in paths]
    assert batches[0].keys() == {"images", "sizes", "original_sizes", "ids"}


def test_ground_truth(make_coco, tmp_path):
    images = {7: (60, 60), 2: (60, 60)}
    for split in ("train", "val"):
        path = make_coco(images, [BOX], split=split, categories=((8, "b"), (3, "a")))
    truth = ready(tmp_path, global_batch_size=1).ground_truth("validation")
    assert truth == (path, [7, 2], [3, 8], ["a", "b"])
    turned = ready(tmp_path, global_batch_size=1, classes=["b", "a"]).ground_truth("validation")
    assert turned[2:] == ([8, 3], ["b", "a"])


# --- files


def test_masks_cannot_be_scored_against_objects_without_any(make_coco, tmp_path):
    """It is told before training, not at its first validation."""
    whole = BOX | {"segmentation": [[10, 20, 40, 20, 40, 60]]}
    make_coco({1: (60, 60)}, [whole])
    make_coco({1: (60, 60), 2: (60, 60)}, [whole, BOX | {"image_id": 2}, BOX], split="val")
    data = ready(tmp_path, global_batch_size=1, with_masks=True)
    assert len(data.ground_truth("validation").image_ids) == 2
    assert len(data.ground_truth("training", masks=True).image_ids) == 1
    with pytest.raises(
        DataError, match=r"annotation 3, image 1 of .*val2017.json, has no mask"
    ) as e:
        data.ground_truth("validation", masks=True)
    assert "and 1 more problem:" in str(e.value)
    report = inspect_all(data.inspectable("validation"), workers=0)
    assert "annotation 3" in report.problems[Flaw.ANNOTATION][0]
    assert report.num_problems == 2
    assert inspect_all(data.inspectable("training"), workers=0).num_problems == 0
    boxes = ready(tmp_path, global_batch_size=1)
    assert len(boxes.ground_truth("validation", masks=True).image_ids) == 2


def test_other_names(make_coco, tmp_path):
    for split in ("first", "second"):
        make_coco({1: (60, 60)}, [BOX], split=split)
    names = {
        "train_images": "first2017",
        "train_annotations": "annotations/instances_first2017.json",
        "val_images": "second2017",
        "val_annotations": "annotations/instances_second2017.json",
    }
    data = ready(tmp_path, global_batch_size=1, **names)
    assert len(data.split("training")) == len(data.split("validation")) == 1
    for key, said in (
        ("train_images", "no such folder, or it is empty"),
        ("val_annotations", "no file"),
    ):
        with pytest.raises(UserError, match=f"data.{key}: .*{said}"):
            ready(tmp_path, **names | {key: "none"})
    with pytest.raises(UserError, match=r"data.train_images: .*nowhere"):
        ready(tmp_path / "nowhere", **names)


def test_a_split_by_another_name(make_coco, tmp_path):
    for split in ("train", "val", "test"):
        make_coco({1: (60, 60)}, [BOX] * len(split), split=split)
    data = make_data(tmp_path, test_split="test2017")
    data.setup("test")
    (batch,) = data.eval_loader("test2017")
    assert len(batch["truth"][0]["boxes"]) == 4
    with pytest.raises(DataError, match=r"instances_minival.json: there is no such file; in "):
        make_data(tmp_path, test_split="minival").setup("test")


@pytest.fixture
def undivided(make_coco, tmp_path):
    images = dict.fromkeys(range(101, 141), (60, 60))
    make_coco(images, [BOX | {"image_id": i} for i in images])

    def make(**settings):
        files = {"images": "train2017", "annotations": "annotations/instances_train2017.json"}
        return make_data(tmp_path, **files | {"val_fraction": 0.2} | settings)

    return make


def test_one_file_is_divided(undivided):
    data = undivided()
    data.setup("fit")
    train, val = (data.ground_truth(split).image_ids for split in ("training", "validation"))
    assert (len(train), len(val)) == (32, 8)
    assert sorted(train + val) == list(range(101, 141))
    assert len(data.split("training")) == 32
    assert undivided().ground_truth("validation").image_ids == val
    assert undivided(split_seed=1).ground_truth("validation").image_ids != val
    with pytest.raises(DataError, match="there is no split 'test2017'"):
        undivided(test_split="test2017").setup("test")


def test_the_list_of_a_run_gives_its_split_again(undivided, tmp_path):
    from lightning.pytorch import Trainer

    data = undivided()
    data.trainer = Trainer(default_root_dir=tmp_path / "run", logger=False, accelerator="cpu")
    data.setup("fit")
    again = undivided(val_fraction=None, val_list="run/validation.txt")
    again.setup("fit")
    assert again.ground_truth("validation") == data.ground_truth("validation")


def test_undivided_files_must_be_said_whole(undivided, tmp_path):
    for settings, said in (
        ({"annotations": None}, "data.images and data.annotations"),
        ({"train_images": "x"}, "data.images and data.annotations"),
        ({"val_fraction": None}, r"data.val_fraction \(0.1"),
        ({"val_list": "x.txt"}, r"data.val_fraction \(0.1"),
        ({"val_fraction": None, "val_list": "x.txt"}, "data.val_list: no file"),
        ({"images": "x"}, "data.images: .*x: no such folder"),
    ):
        with pytest.raises(UserError, match=said):
            undivided(**settings).setup("fit")
    with pytest.raises(UserError, match=r"data.val_fraction: 1.5"):
        undivided(val_fraction=1.5)


def test_the_missing_root_says_what_to_do(tmp_path):
    with pytest.raises(
        UserError, match=r"COCO: the folder .*\n.*train2017.zip(.|\n)*sample-data coco"
    ):
        make_data(tmp_path / "none").setup("fit")


# --- pictures


def exif(path, orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    image.save(path, exif=tags)
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize("orientation", [3, 6])
def test_annotations_are_of_the_pixels_in_the_file(make_coco, tmp_path, orientation):
    make_coco({1: (60, 40)}, [{"bbox": [1, 1, 9, 9]}], split="val")
    pixels = exif(tmp_path / "val2017/1.png", orientation)
    data = make_data(tmp_path)
    assert np.array_equal(data.images("validation").image(0), pixels)


def test_a_file_is_turned_if_that_gives_the_size_annotated(make_coco, tmp_path):
    make_coco({1: (40, 60)}, [{"bbox": [1, 1, 9, 9]}], split="val")
    pixels = exif(tmp_path / "val2017/1.png", 6)
    image = make_data(tmp_path).images("validation").image(0)
    assert np.array_equal(image, np.rot90(pixels, -1))


def test_greyscale(make_coco, tmp_path):
    for split in ("train", "val"):
        make_coco({1: (60, 40)}, [{"bbox": [1, 1, 9, 9]}], split=split)
        Image.new("L", (60, 40), 77).save(tmp_path / f"{split}2017/1.png")
    (batch,) = ready(tmp_path, global_batch_size=1).train_loader(steps=1)
    assert (batch["images"][0, :, :40, :60] == 77).all()


# --- bad input


def test_all_that_is_wrong_is_listed(make_coco, tmp_path):
    images = {1: (60, 40), 2: (60, 40), 3: (60, 40), 4: (60, 40)}
    box = {"bbox": [1, 1, 9, 9]}
    make_coco(images, [box, box | {"image_id": 9}, box | {"category_id": 9, "id": 1}])
    make_coco({1: (60, 40)}, [box], split="val")
    folder = tmp_path / "train2017"
    (folder / "2.png").unlink()
    Image.new("RGB", (61, 40)).save(folder / "3.png")
    (folder / "4.png").write_bytes((folder / "4.png").read_bytes()[:300])
    data = make_data(tmp_path)
    report = inspect_all(data.inspectable("training"), workers=0)
    said = "\n".join(line for lines in report.problems.values() for line in lines)
    file = tmp_path / "annotations/instances_train2017.json"
    assert f"{file}: annotation 2: its image_id 9 is not in the list of images" in said
    assert f"{file}: annotation 1: this id stands twice" in said
    assert f"2.png: there is no such file, but image 2 of {file} lists it" in said
    assert f"3.png: is 61 x 40 pixels, but image 3 of {file} says 60 x 40" in said
    assert f"{folder / '4.png'}: is cut off" in said
    assert (report.num_problems, report.sound) == (5, [0])
    assert inspect_all(data.inspectable("validation"), workers=0).num_problems == 0
    with pytest.raises(DataError, match=r"annotation 2: .*\n\(and 2 more problems: `check-data`"):
        data.setup("fit")


def test_what_check_data_draws_and_counts(sample_coco):
    split = make_data(sample_coco, with_masks=True).inspectable("training")
    report = inspect_all(split, workers=0)
    assert (report.num_problems, report.samples, report.unit) == (0, 30, "objects")
    content = json.loads((sample_coco / "annotations/instances_train2017.json").read_text())
    assert report.counts.total() == sum(not a["iscrowd"] for a in content["annotations"])
    image, targets = split.read(3)
    assert image.shape == (96, 96, 3)
    assert targets.keys() == {"boxes", "labels", "crowd", "rles"}
    assert len({len(values) for values in targets.values()}) == 1
    assert split.name(3) == content["images"][3]["file_name"]


def test_a_file_for_both_splits_is_told_of_once(undivided):
    assert undivided().inspectable("training").tell
    assert not undivided().inspectable("validation").tell


def test_annotation_files_must_agree_on_the_classes(make_coco, tmp_path):
    make_coco({1: (60, 60)}, [BOX], categories=((1, "cat"), (2, "dog")))
    make_coco({1: (60, 60)}, [BOX], categories=((1, "cat"), (2, "dug")), split="val")
    with pytest.raises(
        DataError,
        match=r"val2017.json: 'dug' is no category of .*train2017.json; is 'dog' meant",
    ):
        ready(tmp_path)


def test_a_category_of_the_training_images_alone(make_coco, tmp_path):
    """The message names the file that the classes come from; no config names any."""
    make_coco({1: (60, 60)}, [BOX | {"category_id": 2}], categories=((1, "cat"), (2, "dog")))
    make_coco({1: (60, 60)}, [BOX], categories=((1, "cat"),), split="val")
    with pytest.raises(DataError, match=r"val2017.json misses 'dog': .* has annotations") as told:
        ready(tmp_path)
    assert "data.classes" not in str(told.value)


def test_nothing_to_learn(make_coco, tmp_path):
    make_coco({1: (60, 60)}, [BOX], split="val")
    path = make_coco({1: (60, 60)}, [{"bbox": [0.1, 0.2, 0.3, 0.4]}] * 3)
    with pytest.raises(DataError, match=r"3 boxes are outside .* not in fractions"):
        ready(tmp_path, global_batch_size=1)
    report = inspect_all(make_data(tmp_path).inspectable("training"), workers=0)
    assert "not in fractions" in str(report.problems)
    path.write_text(path.read_text().replace("[0.1, 0.2, 0.3, 0.4]", "[1, 2, 30, 40]"))
    with pytest.raises(DataError, match=r"none has a mask .* data.with_masks to false"):
        ready(tmp_path, global_batch_size=1, with_masks=True)
    with pytest.raises(DataError, match=r"a side of less than data.min_size 100 pixels"):
        ready(tmp_path, global_batch_size=1, min_size=100)


def test_what_is_left_out_is_logged_once(make_coco, tmp_path, caplog):
    given = [BOX, {"bbox": [5, 5, 0, 9]}, BOX | {"segmentation": [[1, 1, 9, 1, 9, 9]]}]
    for split in ("train", "val"):
        make_coco({1: (60, 60)}, given, split=split)
    with caplog.at_level("INFO", logger="gmf_platform.coco"):
        data = ready(tmp_path, global_batch_size=1, with_masks=True)
        data.setup("test")
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(set(said)) == 4
    assert sum("1 box is left out" in line for line in said) == 2
    assert sum("1 object has no mask, and so no part in training" in line for line in said) == 2
    for split in ("training", "validation"):
        notes = inspect_all(data.inspectable(split), workers=0).notes
        assert notes == [line for line in said if f"instances_{split[:3]}" in line]


def test_what_is_left_out_of_a_file_for_both_splits_is_told_once(undivided):
    path = undivided().root / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"][:2]:
        annotation["bbox"] = [5, 5, -3, 9]
    path.write_text(json.dumps(content))
    data = undivided()
    (note,) = data.inspectable("training").notes()
    assert note.startswith(f"{path}: 2 boxes are left out")
    assert data.inspectable("validation").notes() == []


def test_spawned_workers_get_a_small_data_set(sample_coco):
    dataset = ready(sample_coco, with_masks=True).split("training")
    copy = pickle.loads(pickle.dumps(dataset))
    one, other = dataset[SampleKey(0, 1)], copy[SampleKey(0, 1)]
    assert np.array_equal(one["image"], other["image"])


# --- real data


@pytest.mark.data
def test_real_coco(real_data):
    data = make_data(real_data("coco_mini"), with_masks=True, multi_scale=[64, 80])
    data.setup("fit")
    assert len(data.class_names) == 80
    assert data.ground_truth("validation").category_ids[:12] == [
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        8,
        9,
        10,
        11,
        13,
    ]
    assert len(data.split("training")) == 109  # of 113; 4 have no object
    batches = list(islice(data.train_loader(steps=27), 27))
    assert any(len(t["crowd"]) for b in batches for t in b["targets"])
    assert len(list(data.eval_loader("validation"))) == 87


@pytest.mark.data
def test_real_boxes_alone(real_data):
    data = make_data(real_data("bccd"))
    data.setup("fit")
    assert data.class_names == ["Platelets", "RBC", "WBC"]
    assert len(data.split("training")) == 292
    assert next(iter(data.train_loader(steps=1)))["images"].shape[0] == 4


def test_size_of_training_images():
    assert COCO("none").training_size == (800, 1333)
    assert COCO("none", multi_scale=[480, 640]).training_size == (640, 1333)
    assert COCO("none", jitter=(0.1, 2.0), jitter_size=512).training_size == (512, 512)
