import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from datamodules.sample_data import GROUNDS, SHAPES, write_sample
from datamodules.sample_data.colour_baseline import colour_baseline
from datamodules.sample_data.outlines import run_lengths, to_polygons
from datamodules.sample_data.scenes import draw_scene, scenes
from datamodules.sample_data.shapes import signed_distance
from gmf_platform.errors import UserError

TRAIN, VAL, SIZE, SEED = 36, 14, 64, 3
LAYOUTS = ("ade20k", "coco", "imagenet")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    parent = tmp_path_factory.mktemp("samples")
    for layout in LAYOUTS:
        write_sample(layout, parent / layout, train=TRAIN, val=VAL, size=SIZE, seed=SEED)
    return parent


def small(directory, layout="ade20k", **changes):
    write_sample(layout, directory, **{"train": 3, "val": 2, "size": 32, "seed": 0, **changes})


def contents(directory):
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


# --- the three layouts ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "short", "number"), [("training", "train", TRAIN), ("validation", "val", VAL)]
)
def test_ade20k_files(samples, folder, short, number):
    root = samples / "ade20k"
    names = [f"ADE_{short}_{i:08d}" for i in range(1, number + 1)]
    assert sorted(p.name for p in (root / "images" / folder).iterdir()) == [
        f"{n}.jpg" for n in names
    ]
    assert sorted(p.name for p in (root / "annotations" / folder).iterdir()) == [
        f"{n}.png" for n in names
    ]
    for index, name in enumerate(names):
        picture = Image.open(root / "images" / folder / f"{name}.jpg")
        mask = Image.open(root / "annotations" / folder / f"{name}.png")
        assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (SIZE, SIZE))
        assert (mask.format, mask.mode, mask.size) == ("PNG", "L", (SIZE, SIZE))
        scene = draw_scene(index, seed=SEED, split=short, size=SIZE)
        np.testing.assert_array_equal(np.asarray(mask), scene.labels)
        blur = np.abs(np.asarray(picture, float) - scene.image).mean()
        assert blur < 12, "the JPEG is another picture than the scene"


def test_ade20k_object_info_tells_what_the_masks_hold(samples):
    root = samples / "ade20k"
    header, *lines = (root / "objectInfo150.txt").read_text().splitlines()
    assert header.split("\t") == ["Idx", "Ratio", "Train", "Val", "Name"]
    masks = {
        split: np.stack(
            [np.asarray(Image.open(p)) for p in (root / "annotations" / split).iterdir()]
        )
        for split in ("training", "validation")
    }
    assert set(np.unique(masks["training"])) == set(range(9)), "all classes and 0 occur"
    for number, line in enumerate(lines, start=1):
        index, ratio, train, val, name = line.split("\t")
        assert (int(index), name) == (number, (*GROUNDS, *SHAPES)[number - 1])
        assert float(ratio) == pytest.approx((masks["training"] == number).mean(), abs=6e-5)
        assert int(train) == (masks["training"] == number).any((1, 2)).sum()
        assert int(val) == (masks["validation"] == number).any((1, 2)).sum()
    assert len(lines) == 8


@pytest.mark.parametrize(("split", "number"), [("train", TRAIN), ("val", VAL)])
def test_coco_annotations_decode_to_the_scene(samples, split, number):
    coco = COCO(str(samples / "coco" / "annotations" / f"instances_{split}2017.json"))
    assert set(coco.dataset) == {"info", "licenses", "images", "annotations", "categories"}
    assert len(coco.imgs) == number
    for index, image in enumerate(coco.dataset["images"]):
        path = samples / "coco" / f"{split}2017" / image["file_name"]
        assert len(path.stem) == 12
        assert int(path.stem) == image["id"]
        assert Image.open(path).size == (image["width"], image["height"]) == (SIZE, SIZE)
        scene = draw_scene(index, seed=SEED, split=split, size=SIZE)
        annotations = coco.loadAnns(coco.getAnnIds(image["id"]))
        assert len(annotations) == len(scene.objects)
        for annotation, thing in zip(annotations, scene.objects, strict=True):
            decoded = coco.annToMask(annotation)
            np.testing.assert_array_equal(decoded, thing.mask)
            encoded = coco_mask.encode(np.asfortranarray(decoded))
            assert annotation["bbox"] == coco_mask.toBbox(encoded).tolist()
            assert annotation["area"] == coco_mask.area(encoded)
            assert coco.cats[annotation["category_id"]]["name"] == thing.shape
            assert isinstance(annotation["segmentation"], dict) == bool(annotation["iscrowd"])


def test_coco_has_what_makes_the_real_one_hard(samples):
    train, val = (
        json.loads((samples / "coco" / "annotations" / f"instances_{s}2017.json").read_text())
        for s in ("train", "val")
    )
    ids = [category["id"] for category in train["categories"]]
    assert ids == sorted(ids)
    assert max(ids) > len(ids), "ids have gaps"
    assert train["categories"] == val["categories"]
    assert {a["category_id"] for a in train["annotations"] if not a["iscrowd"]} == set(ids)
    for content in (train, val):
        shown = {a["image_id"] for a in content["annotations"]}
        assert any(a["iscrowd"] for a in content["annotations"])
        assert any(image["id"] not in shown for image in content["images"])
        assert len({a["id"] for a in content["annotations"]}) == len(content["annotations"])
    assert not {i["id"] for i in train["images"]} & {i["id"] for i in val["images"]}


@pytest.mark.parametrize(("split", "number"), [("train", TRAIN), ("val", VAL)])
def test_imagenet_folder_is_the_largest_object(samples, split, number):
    root = samples / "imagenet" / split
    wnids = sorted(path.name for path in root.iterdir())
    assert len(wnids) == len(SHAPES)
    assert all(len(wnid) == 9 and wnid[0] == "n" and wnid[1:].isdigit() for wnid in wnids)
    assert all(any((root / wnid).iterdir()) for wnid in wnids), "all classes occur"
    paths = sorted(root.glob("*/*.JPEG"))
    assert len(paths) == number
    for path in paths:
        scene = draw_scene(int(path.stem.split("_")[-1]) - 1, seed=SEED, split=split, size=SIZE)
        areas = {int(t.mask.sum()): t.shape for t in scene.objects if not t.crowd}
        assert SHAPES[wnids.index(path.parent.name)] == areas[max(areas)]


@pytest.mark.parametrize("split", ["train", "val"])
def test_layouts_show_the_same_pictures(samples, split):
    folder = {"train": "training", "val": "validation"}[split]
    ade = sorted((samples / "ade20k" / "images" / folder).iterdir())
    coco = sorted((samples / "coco" / f"{split}2017").iterdir())
    assert [path.read_bytes() for path in ade] == [path.read_bytes() for path in coco]
    shared = 0
    for path in (samples / "imagenet" / split).glob("*/*.JPEG"):
        index = int(path.stem.split("_")[-1]) - 1
        if index < len(ade):
            assert path.read_bytes() == ade[index].read_bytes()
            shared += 1
    empty = len(range(11, len(ade), 16))
    assert shared == len(ade) - empty, "only scenes without an object are left out"


# --- scenes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_have_area_one(shape):
    axis = np.linspace(-1, 1, 1000, dtype=np.float32)
    v, u = np.meshgrid(axis, axis, indexing="ij")
    distance = signed_distance(shape, u, v)
    assert (distance < 0).mean() * 4 == pytest.approx(1, abs=0.01)
    slope = np.hypot(*np.gradient(distance, axis, axis))
    assert np.median(slope) == pytest.approx(1, abs=1e-3), "a distance grows by 1 per unit"


def test_scenes_are_consistent():
    for scene in islice(scenes(seed=1, split="train", size=48), 48):
        single = [thing for thing in scene.objects if not thing.crowd]
        assert len(single) <= 4
        empty = scene.index % 16 == 11
        assert scene.main_shape == (None if empty else SHAPES[scene.index % 5])
        covered = np.zeros((48, 48), int)
        for thing in scene.objects:
            label = 0 if thing.crowd else 4 + SHAPES.index(thing.shape)
            assert set(scene.labels[thing.mask]) == {label}
            covered += thing.mask
        assert covered.max() <= 1
        assert set(np.unique(scene.labels[covered == 0])) <= {1, 2, 3}


def test_scene_depends_on_each_argument():
    first = draw_scene(0, seed=0, split="train", size=32).image
    others = (
        draw_scene(1, seed=0, split="train", size=32),
        draw_scene(0, seed=1, split="train", size=32),
        draw_scene(0, seed=0, split="val", size=32),
    )
    assert all(np.abs(first.astype(int) - other.image).mean() > 5 for other in others)


# --- outlines ------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_outlines_give_back_any_mask(density):
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.random((13, 17)) < density
        polygons = to_polygons(mask)
        decoded = np.zeros(mask.shape, bool)
        for encoded in coco_mask.frPyObjects(polygons, *mask.shape) if polygons else ():
            decoded |= coco_mask.decode(encoded).astype(bool)
        np.testing.assert_array_equal(decoded, mask)
        encoded = coco_mask.frPyObjects(run_lengths(mask), *mask.shape)
        np.testing.assert_array_equal(coco_mask.decode(encoded), mask)


# --- writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_arguments_give_the_same_bytes(tmp_path, layout):
    small(tmp_path / "a", layout)
    small(tmp_path / "b", layout)
    small(tmp_path / "c", layout, seed=1)
    first, second, other = (contents(tmp_path / name) for name in "abc")
    assert first == second
    images = [name for name in first if name.endswith((".jpg", ".JPEG"))]
    assert len(images) == 5
    assert all(first[name] != other[name] for name in images)


def test_second_call_leaves_the_sample_alone(tmp_path):
    small(tmp_path / "s")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    calls = []
    small(tmp_path / "s", progress=lambda done, total: calls.append(done))
    assert not calls
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_progress_counts_images_of_both_splits(tmp_path):
    calls = []
    small(tmp_path / "s", "imagenet", progress=lambda *call: calls.append(call))
    assert calls == [(done, 5) for done in range(1, 6)]


def test_empty_folder_and_missing_parents_are_fine(tmp_path):
    (tmp_path / "empty").mkdir()
    small(tmp_path / "empty")
    small(tmp_path / "deep" / "er")
    assert contents(tmp_path / "empty") == contents(tmp_path / "deep" / "er")


def test_interrupted_run_leaves_nothing(tmp_path):
    def interrupt(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small(tmp_path / "s", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_folder_with_other_files_is_refused_and_kept(tmp_path):
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(UserError, match="other files") as error:
        small(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "s").write_text("")
    with pytest.raises(UserError, match="is a file"):
        small(tmp_path / "s")
    with pytest.raises(UserError, match="cannot write"):
        small(tmp_path / "s" / "below")


@pytest.mark.parametrize("change", [{"train": 4}, {"val": 3}, {"size": 33}, {"seed": 1}])
def test_another_sample_is_refused(tmp_path, change):
    small(tmp_path / "s")
    before = contents(tmp_path / "s")
    with pytest.raises(UserError, match="another sample"):
        small(tmp_path / "s", **change)
    with pytest.raises(UserError, match="another sample"):
        small(tmp_path / "s", "coco")
    assert contents(tmp_path / "s") == before


def test_sample_with_lost_images_is_refused(tmp_path):
    small(tmp_path / "s")
    next((tmp_path / "s").rglob("*.jpg")).unlink()
    with pytest.raises(UserError, match="4 images instead of 5"):
        small(tmp_path / "s")


@pytest.mark.parametrize("change", [{"train": 0}, {"val": 0}, {"size": 31}, {"seed": -1}])
def test_argument_out_of_range_is_named(tmp_path, change):
    ((name, value),) = change.items()
    with pytest.raises(UserError, match=f"{name} is {value}"):
        small(tmp_path / "s", **change)
    assert not (tmp_path / "s").exists()


def test_drawing_needs_no_torch():
    code = "import sys, datamodules.sample_data.colour_baseline; print('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert done.stdout.strip() == "False"


# --- the score of colour alone -------------------------------------------------------------------


def write_pair(root, split, pixels, labels):
    for folder in ("images", "annotations"):
        (root / folder / split).mkdir(parents=True, exist_ok=True)
    # Flat blocks as large as JPEG's keep their colour; one block per label.
    image = np.kron(np.array([pixels], np.uint8), np.ones((16, 16, 1), np.uint8))
    mask = np.kron(np.array([labels], np.uint8), np.ones((16, 16), np.uint8))
    Image.fromarray(image).save(root / "images" / split / "a.jpg", quality=100, subsampling=0)
    Image.fromarray(mask).save(root / "annotations" / split / "a.png")


RED, GREEN, BLUE, GREY = (200, 8, 8), (8, 200, 8), (8, 8, 200), (136, 136, 136)


def test_colour_baseline_by_hand(tmp_path):
    write_pair(tmp_path, "training", [RED, RED, RED, GREEN, BLUE], [1, 1, 2, 2, 0])
    # Predicted 1, 2, 1, and 1 for the unseen grey, since classes 1 and 2 are as frequent: class 1
    # has 1 hit in a union of 3, class 2 has 1 in 2, class 3 has 0 in 1. The last block is ignored.
    write_pair(tmp_path, "validation", [RED, GREEN, RED, GREY, BLUE], [1, 2, 2, 3, 0])
    assert colour_baseline(tmp_path) == pytest.approx((1 / 3 + 1 / 2 + 0) / 3)


def test_colour_baseline_is_weak_on_scenes(samples):
    score = colour_baseline(samples / "ade20k")
    assert 0.05 < score < 0.25, "colour alone must not solve the sample"


def test_colour_baseline_names_what_is_missing(tmp_path, samples):
    with pytest.raises(UserError, match="training"):
        colour_baseline(tmp_path)
    write_pair(tmp_path, "training", [RED], [1])
    (tmp_path / "annotations" / "training" / "a.png").unlink()
    with pytest.raises(UserError, match="has no mask"):
        colour_baseline(tmp_path)
    write_pair(tmp_path, "training", [RED], [1, 2])
    with pytest.raises(UserError, match=r"is \(16, 32\)"):
        colour_baseline(tmp_path)
