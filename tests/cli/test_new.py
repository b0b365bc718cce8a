"""new seg: what it decides by the data, and that its config trains."""

import numpy as np
import pytest
import yaml
from PIL import Image

from datamodules.survey import Survey
from gmf_platform.cli.new_segmentation import size_training
from gmf_platform.errors import UserError

SIZE = (96, 128)


@pytest.fixture
def write(tmp_path):
    """Write 16 images and masks of stripes of the given values."""

    def make(values, mask="masks/{}.png", count=16, size=SIZE):
        generator = np.random.default_rng(0)
        rows = [values[i * len(values) // size[0]] for i in range(size[0])]
        stripes = np.repeat(np.array(rows, np.uint8)[:, None], size[1], axis=1)
        for i in range(count):
            image = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
            for name, array in ((f"images/{i}.png", image), (mask.format(i), stripes)):
                (tmp_path / name).parent.mkdir(exist_ok=True)
                Image.fromarray(np.ascontiguousarray(array)).save(tmp_path / name)

    return make


@pytest.fixture
def new(gmf, tmp_path):
    """Run ``new seg`` on the written folders; gives its config's data, and what it noted."""

    def run(*words, images="images", masks="masks"):
        result = gmf("new", "seg", "--images", images, "--masks", masks, *words)
        assert result.code == 0, result.err
        (tmp_path / "my.yaml").write_text(result.out)
        return yaml.safe_load(result.out)["data"]["init_args"], result.err

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
        "decode_head": {"channels": 16},
        "auxiliary_head": {"channels": 16},
    }
    trainer = {"max_steps": 2, "val_check_interval": 2, "num_sanity_val_steps": 0}
    data = {"crop_size": 64, "scale": [256, 64], "num_workers": 0}
    content = {"init_from": "none", "model": model, "trainer": trainer, "data": data}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    return ("--config", "tiny.yaml")


RED, BLACK = [255, 0, 0], [0, 0, 0]


@pytest.mark.parametrize("values", [[0, 1, 2], [0, 255], [1, 2, 255], [BLACK, RED]])
def test_config_trains(gmf, write, new, tiny, tmp_path, values):
    write(values)
    new()
    result = gmf("fit", "--config", "my.yaml", *tiny)
    assert result.code == 0, result.err
    assert '"finished": true' in result.out
    kept = (tmp_path / "runs" / "my-tiny" / "validation.txt").read_text()
    assert len(kept.split()) == 3  # a fifth of 16
    assert gmf("check-data", "--config", "my.yaml", "--workers", 0).code == 0


def test_numbers(write, new):
    write([0, 1, 2])
    data, notes = new()
    assert data["zero_is"] == "class"
    assert data["ignore_value"] is None
    assert data["classes"] == ["class_0", "class_1", "class_2"]
    assert "palette" not in data
    assert "note: 0 (33.3%) is taken for a class" in notes


def test_255_beside_numbers_is_ignored(write, new):
    write([0, 1, 2, 255])
    data, notes = new()
    assert (data["zero_is"], data["ignore_value"]) == ("class", 255)
    assert len(data["classes"]) == 3
    assert "255 (25.0%) is ignored" in notes


def test_no_0_counts_from_1(write, new):
    write([1, 2, 3])
    data, notes = new()
    assert data["zero_is"] == "ignore"
    assert data["classes"] == ["class_1", "class_2", "class_3"]
    assert "0 does not occur" in notes


def test_two_values_are_two_classes(write, new):
    write([0, 255])
    data, notes = new()
    assert data["palette"] == {"background": [0, 0, 0], "object": [255, 255, 255]}
    assert (data["zero_is"], data["ignore_value"]) == ("class", None)
    assert "0 (50.0%), 255 (50.0%)" in notes


def test_grey_values_with_gaps(write, new):
    write([0, 100, 200])
    data, _ = new()
    assert list(data["palette"].values()) == [[0] * 3, [100] * 3, [200] * 3]


def test_colours(write, new):
    write([BLACK, RED, [0, 0, 255]])
    data, _ = new()
    assert data["palette"] == {"class_0": BLACK, "class_1": [0, 0, 255], "class_2": RED}


@pytest.mark.parametrize(
    ("names", "zero_is", "noted"),
    [
        (["a", "b", "c"], "class", "0 (33.3%) is taken for a class"),
        (["a", "b"], "ignore", "0 (33.3%) is ignored: there are 2 names for 1 to 2"),
        (["a", "b", "c", "no"], "class", "4 names, so values up to 3 are expected"),
    ],
)
def test_names_tell_what_0_is(write, new, tmp_path, names, zero_is, noted):
    write([0, 1, 2])
    (tmp_path / "names.txt").write_text("\n".join(names))
    data, notes = new("--classes", "names.txt")
    assert (data["classes"], data["zero_is"]) == (names, zero_is)  # "no" is a name, not false
    assert noted in notes


@pytest.mark.parametrize("values", [[0, 1], [0, 255]])
def test_one_name_stands_before_a_background(write, new, tmp_path, values):
    write(values)
    (tmp_path / "names.txt").write_text("ship\n")
    data, _ = new("--classes", "names.txt")
    assert list(data.get("palette", data.get("classes"))) == ["background", "ship"]


def test_suffix_is_found(write, new):
    write([0, 1], mask="masks/{}_label.png")
    assert new()[0]["mask_suffix"] == "_label"


def test_suffix_in_the_same_folder(write, new):
    write([0, 1], mask="images/{}_label.png")
    data, _ = new(masks="images")
    assert (data["mask_suffix"], data["images"], data["masks"]) == ("_label", ".", ".")


def test_patterns_keep_out_of_the_root(write, new, tmp_path):
    write([0, 1])
    data, _ = new(images="im*/*.png", masks="ma*/*.png")
    assert (data["root"], data["images"]) == (str(tmp_path), "im*/*.png")


def test_much_of_one_value_is_seen_to(write, new, tmp_path):
    write([0] * 9 + [1])
    assert new()[0]["max_category_ratio"] == 1.0
    write([0] * 8 + [1, 2])
    (tmp_path / "names.txt").write_text("a\nb\n")
    assert new("--classes", "names.txt")[0]["check_masks"] == 0


def test_small_images_have_small_crops(write, new):
    write([0, 1], size=(60, 100))
    data, _ = new()
    assert (data["crop_size"], data["scale"]) == (128, [512, 128])


@pytest.mark.parametrize(
    ("values", "names", "said"),
    [
        ([3], None, "hold nothing but 3"),
        ([0], None, "hold nothing but 0"),
        ([0, 1, 2], ["a"], "1 names, but the masks hold values up to 2"),
        ([0, 255], ["a", "b", "c"], "3 names, but the masks hold 2 values"),
        ([BLACK, RED], ["a", "b"], "names in a list do not say which is which"),
    ],
)
def test_wrong_masks_and_names(gmf, write, tmp_path, values, names, said):
    write(values)
    words = ["new", "seg", "--images", "images", "--masks", "masks"]
    if names:
        (tmp_path / "names.txt").write_text("\n".join(names))
        words += ["--classes", "names.txt"]
    result = gmf(*words)
    assert (result.code, result.out) == (2, "")
    assert said in result.err


def test_photographs_are_no_masks(gmf, write):
    write([0, 1])
    result = gmf("new", "seg", "--images", "images", "--masks", "images", "--mask-suffix", "")
    assert result.code == 2
    assert "they seem to be photographs" in result.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("new",), "task"),
        (("new", "sge"), "invalid choice: 'sge'"),
        (("new", "seg", "--images", "images"), "--masks"),
        (("new", "seg", "--images", "none", "--masks", "none"), "--images none: no such folder"),
    ],
)
def test_wrong_words(gmf, words, said):
    result = gmf(*words)
    assert (result.code, result.out) == (2, "")
    assert said in result.err


def survey(count, sizes=((512, 683),)):
    return Survey(count, "", len(sizes), False, {0: 0.5, 1: 0.5}, list(sizes))


@pytest.mark.parametrize(
    ("count", "batch", "steps", "warmup"),
    [
        (22_456, 16, 160_000, 1500),  # as many as ADE20K trains on: its own figures
        (1_000_000, 16, 160_000, 1500),
        (4444, 16, 32_000, 1500),
        (500, 16, 4000, 400),
        (100, 8, 4000, 400),
        (10, 4, 4000, 400),
        (4, 3, 4000, 400),
    ],
)
def test_size_follows_the_number_of_images(count, batch, steps, warmup):
    sizing = size_training(survey(count))
    assert (sizing.batch, sizing.steps, sizing.warmup) == (batch, steps, warmup)
    assert sizing.interval == steps // 10


@pytest.mark.parametrize(
    ("sizes", "crop", "scale"),
    [
        ([(512, 683)], 512, (2048, 512)),
        ([(3000, 4000)], 512, (2048, 512)),
        ([(360, 480)], 352, (1408, 352)),
        ([(64, 64)], 128, (512, 128)),
        ([(300, 1800)], 288, (1728, 288)),
    ],
)
def test_size_follows_the_images(sizes, crop, scale):
    sizing = size_training(survey(100, sizes))
    assert (sizing.crop, sizing.scale) == (crop, scale)


def test_two_images_are_too_few():
    with pytest.raises(UserError, match="2 images are too few"):
        size_training(survey(2))


@pytest.mark.data
def test_real_data(real_data, new):
    root = real_data("camvid_mini")
    places = {"images": root / "images/training", "masks": root / "annotations/training"}
    data, _ = new("--classes", root / "classes.txt", **places)
    assert (data["zero_is"], data["ignore_value"], len(data["classes"])) == ("ignore", None, 11)
    assert (data["crop_size"], data["global_batch_size"]) == (352, 8)
