"""new det: what it decides by the annotations, and that its config trains."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from gmf_platform.cli.new_detection import look_at, size_training
from gmf_platform.errors import UserError

SQUARE = [10, 10, 50, 10, 50, 50, 10, 50]


@pytest.fixture
def write(tmp_path):
    """Write images and an annotation file; ``change`` gets its content before it is written."""

    def make(count=16, name="instances.json", folder="images", size=(96, 64), change=None):
        (tmp_path / folder).mkdir(exist_ok=True)
        pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        names = [f"{i}.jpg" for i in range(count)]
        for file in names:
            Image.fromarray(pixels).save(tmp_path / folder / file)
        images = [
            {"id": i + 5, "file_name": file, "width": size[0], "height": size[1]}
            for i, file in enumerate(names)
        ]
        annotations = [
            {
                "id": i,
                "image_id": i // 2 + 5,
                "category_id": (9, 4)[i % 2],
                "bbox": [10, 10, 40, 40],
                "area": 1600,
                "iscrowd": 0,
                "segmentation": [SQUARE],
            }
            for i in range(2 * count)
        ]
        categories = [{"id": 9, "name": "cat"}, {"id": 4, "name": "dog: small"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        if change is not None:
            change(content)
        (tmp_path / name).write_text(json.dumps(content))

    return make


@pytest.fixture
def new(gmf, tmp_path):
    """Run ``new det`` on the written files; gives its config, and what it noted."""

    def run(*words, images="images", annotations="instances.json"):
        words = ("--images", images, "--annotations", annotations, *words)
        result = gmf("new", "det", *words)
        assert result.code == 0, result.err
        (tmp_path / "my.yaml").write_text(result.out)
        return yaml.safe_load(result.out), result.err

    return run


@pytest.fixture
def tiny(tmp_path):
    """An overlay: a small network and two steps."""
    model = {
        "backbone": {
            "embedding_dims": [20, 40, 60, 80],
            "depths": [1, 1, 1, 1],
            "mlp_ratios": [2, 2, 2, 2],
        },
        "head": {"channels": 8},
    }
    trainer = {"max_steps": 2, "num_sanity_val_steps": 0}
    data = {"scale": [96, 64], "num_workers": 0}
    content = {"init_from": "none", "model": model, "trainer": trainer, "data": data}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    return ("--config", "tiny.yaml")


def without_masks(content):
    for annotation in content["annotations"]:
        annotation["segmentation"] = []


def one_without_a_mask(content):
    del content["annotations"][3]["segmentation"]


@pytest.mark.parametrize(
    ("change", "head", "monitor"),
    [
        (None, "MaskRCNN", "val/mask_ap"),
        (without_masks, "RetinaNet", "val/box_ap"),
        (one_without_a_mask, "RetinaNet", "val/box_ap"),
    ],
)
def test_config_trains(gmf, write, new, tiny, tmp_path, change, head, monitor):
    write(change=change)
    config, notes = new()
    assert config["model"]["init_args"]["head"]["class_path"].endswith(head)
    assert config["data"]["init_args"]["with_masks"] == (head == "MaskRCNN")
    assert config["checkpoint"]["monitor"] == monitor
    assert head in notes.replace("Mask R-CNN", "MaskRCNN")
    result = gmf("fit", "--config", "my.yaml", *tiny)
    assert result.code == 0, result.err
    assert '"finished": true' in result.out
    kept = (tmp_path / "runs" / "my-tiny" / "validation.txt").read_text()
    assert len(kept.split()) == 3  # a fifth of 16


def test_classes_are_in_the_order_of_their_ids(write, new):
    write()
    config, notes = new()
    assert config["data"]["init_args"]["classes"] == ["dog: small", "cat"]
    assert "16 images, 32 objects of 2 categories" in notes


def test_a_file_for_validation(gmf, write, new, tiny):
    write()
    write(count=3, name="val.json", folder="val")
    config, _ = new("--val-images", "val", "--val-annotations", "val.json")
    data = config["data"]["init_args"]
    assert data["val_images"] == "val"
    assert data["val_annotations"] == "val.json"
    assert "val_fraction" not in data
    result = gmf("fit", "--config", "my.yaml", *tiny, "--dry-run")
    assert result.code == 0, result.err


def test_masks_are_learned_only_if_they_can_be_scored(write, new):
    write()
    write(name="val.json", folder="val", change=one_without_a_mask)
    config, notes = new("--val-images", "val", "--val-annotations", "val.json")
    assert config["data"]["init_args"]["with_masks"] is False
    assert "val.json: of 32 objects 1 has no mask: the config is RetinaNet" in notes


def test_other_classes_for_validation_name_the_training_file(gmf, write):
    write()
    write(name="val.json", change=lambda content: content["categories"].pop())
    words = ("--images", "images", "--annotations", "instances.json")
    result = gmf("new", "det", *words, "--val-images", "images", "--val-annotations", "val.json")
    assert result.code == 2
    assert "instances.json: 'dog: small' is no category of val.json" in result.err


def test_thin_boxes_are_noted(write, new):
    write(change=lambda content: content["annotations"][0].update(bbox=[5, 5, 9, -2]))
    _, notes = new()
    assert "instances.json: 1 box is left out" in notes


def test_validation_needs_both_names(gmf, write):
    write()
    words = ("--images", "images", "--annotations", "instances.json", "--val-images", "images")
    result = gmf("new", "det", *words)
    assert result.code == 2
    assert "--val-images and --val-annotations: one needs the other" in result.err


def without_images(content):
    del content["images"]


def without_objects(content):
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1


def of_another_folder(content):
    for image in content["images"]:
        image["file_name"] = f"train/{image['file_name']}"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_images, "instances.json: is not a COCO annotation file"),
        (without_objects, "instances.json: has no object to learn from"),
        (of_another_folder, "images: holds none of the images that instances.json lists"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(gmf, write, change, said):
    write(change=change)
    result = gmf("new", "det", "--images", "images", "--annotations", "instances.json")
    assert result.code == 2
    assert said in result.err
    assert result.out == ""


def test_a_missing_file_is_refused(gmf, write):
    write()
    result = gmf("new", "det", "--images", "images", "--annotations", "instance.json")
    assert result.code == 2
    assert "instance.json: there is no such file; in . there is: instances.json" in result.err


def test_wrong_entries_and_empty_categories_are_noted(write, new):
    def change(content):
        content["annotations"][0]["bbox"][0] = None
        content["categories"].append({"id": 30, "name": "bird"})

    write(change=change)
    _, notes = new()
    assert "instances.json: 1 entry is wrong, which fit would refuse" in notes
    assert "categories without an object, which cannot be learned: bird" in notes


def test_absent_images_are_noted(write, new, tmp_path):
    write()
    (tmp_path / "images" / "3.jpg").unlink()
    _, notes = new()
    assert "instances.json: 1 image is not in images, which fit would refuse" in notes
    assert "the first is 3.jpg" in notes


def sized(write, tmp_path, **settings):
    write(**settings)
    part = look_at(tmp_path / "images", tmp_path / "instances.json")
    return size_training(part, has_val=False)


def test_sizes_by_the_measure_of_coco(write, tmp_path):
    """256 images of 96 x 64: 230 are trained, 14 steps of 16 an epoch."""
    sizing = sized(write, tmp_path, count=256)
    assert sizing.val_fraction == 0.1
    assert sizing.batch == 16
    assert sizing.epochs == 279  # 4000 steps
    assert sizing.milestones == (186, 256)
    assert sizing.interval == 24  # 12 validations
    assert sizing.warmup == 401
    assert sizing.scale == (427, 256)


def test_small_sets_have_small_batches(write, tmp_path):
    sizing = sized(write, tmp_path, count=20, size=(600, 300))
    assert sizing.val_fraction == 0.2
    assert sizing.batch == 4  # of 16 images
    assert sizing.scale == (1024, 512)  # 300 x 800 / 480, and twice as long as high


def test_two_images_are_too_few(write, tmp_path):
    with pytest.raises(UserError, match="2 images with objects: too few"):
        sized(write, tmp_path, count=2)


@pytest.mark.parametrize(("name", "head"), [("bccd", "RetinaNet"), ("coco_mini", "MaskRCNN")])
def test_real_sets(gmf, real_data, name, head):
    root = real_data(name)
    words = []
    for prefix, split in (("", "train"), ("val-", "val")):
        words += [f"--{prefix}images", root / f"{split}2017"]
        words += [f"--{prefix}annotations", root / "annotations" / f"instances_{split}2017.json"]
    result = gmf("new", "det", *words, "--name", name)
    assert result.code == 0, result.err
    config = yaml.safe_load(result.out)
    assert config["model"]["init_args"]["head"]["class_path"].endswith(head)
    assert len(config["data"]["init_args"]["classes"]) == {"bccd": 3, "coco_mini": 80}[name]
