import gc
import io
import json
import pickle
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch.distributed as dist
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gmf_platform.errors import UserError
from gmf_platform.evaluation import CocoEvaluator, ImageDetections

BACKENDS = ["faster-coco-eval", "pycocotools"]
SIDE = 240
CATEGORIES = [{"id": 90, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 17, "name": "cup"}]


def drawn_mask(box):
    left, top, width, height = (int(v) for v in box)
    pixels = np.zeros((SIDE, SIDE), np.uint8, order="F")
    pixels[top : top + height, left : left + width] = 1
    code = run_lengths.encode(pixels)
    return {"size": code["size"], "counts": code["counts"].decode()}


def drawn_set(seed, images=9):
    """Truth and results as COCO's json: crowds, equal scores and boxes, empty images, big ones."""
    draw = np.random.default_rng(seed)
    truth, results = [], []
    ids = (draw.permutation(500)[:images] + 1).tolist()

    def box():
        size = draw.choice([4, 20, 60, 110], 2)
        return [float(v) for v in (*draw.integers(0, SIDE - size.max(), 2), *size)]

    for image in ids[:-1]:
        mine = []
        for _ in range(draw.choice([0, 2, 12])):
            mine.append((box(), int(draw.choice([90, 3]))))
            crowd = int(draw.random() < 0.15)
            area = mine[-1][0][2] * mine[-1][0][3] * float(draw.choice([1, 0.5]))
            truth.append([image, *mine[-1], crowd, area])
        for _ in range(draw.choice([0, 5, 130])):
            found, category = mine[draw.integers(len(mine))] if mine else (box(), 17)
            found = [v + float(draw.choice([0, 0, 1, 4])) for v in found]
            score = float(draw.choice([0.25, 0.5, np.float32(draw.random())]))
            results.append([image, found, int(draw.choice([category, 17])), score])
    annotations = [
        dict(zip(("image_id", "bbox", "category_id", "iscrowd", "area"), row, strict=True))
        | {"id": number, "segmentation": drawn_mask(row[1])}
        for number, row in enumerate(truth, 1)
    ]
    images = [{"id": i, "height": SIDE, "width": SIDE, "file_name": f"{i}.jpg"} for i in ids]
    rows = [
        dict(zip(("image_id", "bbox", "category_id", "score"), row, strict=True)) for row in results
    ]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}, rows


def by_image(content, rows):
    """The results as our detections, for each image of the file."""
    labels = {category["id"]: label for label, category in enumerate(content["categories"])}
    for image in content["images"]:
        mine = [row for row in rows if row["image_id"] == image["id"]]
        boxes = np.array([row["bbox"] for row in mine], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        rles = [row.get("segmentation", {"counts": ""})["counts"].encode() for row in mine]
        yield (
            image["id"],
            ImageDetections(
                (image["height"], image["width"]),
                boxes,
                np.array([row["score"] for row in mine], np.float32),
                np.array([labels[row["category_id"]] for row in mine], np.int16),
                rles,
            ),
        )


def evaluator(path, content, *, masks, backend="faster-coco-eval"):
    path.write_text(json.dumps(content))
    return CocoEvaluator(
        path,
        image_ids=[image["id"] for image in content["images"]],
        category_ids=[category["id"] for category in content["categories"]],
        class_names=[category["name"] for category in content["categories"]],
        masks=masks,
        backend=backend,
    )


def evaluated(path, content, rows, *, masks, backend="faster-coco-eval"):
    ours = evaluator(path, content, masks=masks, backend=backend)
    for image_id, detections in by_image(content, rows):
        ours.update(image_id, detections)
    return ours.compute()


def by_pycocotools(path, rows, kind):
    """Its usual way: twelve numbers, and AP by category in the order of category ids."""
    with redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        evaluation = COCOeval(truth, truth.loadRes(rows), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][..., 0, -1]
    parts = [precision[:, :, k] for k in range(precision.shape[2])]
    means = [part[part > -1].mean() if (part > -1).any() else np.nan for part in parts]
    return np.where(evaluation.stats == -1, np.nan, evaluation.stats), means


def numbers(scores, kind):
    return [value for name, value in scores.values.items() if name.startswith(kind)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(6))
def test_same_as_pycocotools_used_by_hand(tmp_path, seed, backend):
    content, rows = drawn_set(seed)
    masks = [{k: v for k, v in row.items() if k != "bbox"} for row in rows]
    for row, mask in zip(rows, masks, strict=True):
        mask["segmentation"] = row["segmentation"] = drawn_mask(row["bbox"])
    scores = evaluated(tmp_path / "truth.json", content, rows, masks=True, backend=backend)
    boxes = [{k: v for k, v in row.items() if k != "segmentation"} for row in rows]
    for kind, iou_type, results in (("box", "bbox", boxes), ("mask", "segm", masks)):
        stats, by_category = by_pycocotools(tmp_path / "truth.json", results, iou_type)
        np.testing.assert_allclose(numbers(scores, kind), stats, rtol=0, atol=1e-14)
        in_order = [by_category[place] for place in (2, 0, 1)]  # ids 90, 3, 17
        np.testing.assert_allclose(scores.class_values[f"{kind}_ap"], in_order, atol=1e-14)
    assert np.isfinite(scores.values["box_ap"])
    assert np.isnan(scores.class_values["box_ap"][2])  # a class that no image has


def published(folder):
    """The twelve numbers of each kind in cocoapi's own text, by the kind."""
    kinds, kind = {}, ""
    for line in (folder / "val2014_fake_eval_res.txt").read_text().splitlines():
        if line.startswith("type="):
            kind = line.removeprefix("type=")
        elif " = " in line:
            kinds.setdefault(kind, []).append(float(line.rpartition(" = ")[2]))
    return kinds


@pytest.mark.data
@pytest.mark.parametrize("backend", BACKENDS)
def test_published_numbers_of_cocoapi(real_data, backend):
    folder = real_data("reference_eval") / "coco_val2014_100"
    truth = folder / "instances_val2014_100.json"
    content = json.loads(truth.read_text())
    rows = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    masks = json.loads((folder / "instances_val2014_fakesegm100_results.json").read_text())
    # Each file on its own: the rows of one image are in the same order in both.
    rows = [box | mask for box, mask in zip(rows, masks, strict=True)]
    ids = [category["id"] for category in content["categories"]]
    ours = CocoEvaluator(
        truth,
        image_ids=[image["id"] for image in content["images"]],
        category_ids=ids,
        class_names=[category["name"] for category in content["categories"]],
        masks=True,
        backend=backend,
    )
    for image_id, detections in by_image(content, rows):
        ours.update(image_id, detections)
    scores = ours.compute()
    expected = json.loads((folder / "expected_pycocotools.json").read_text())
    for kind, name in (("box", "bbox"), ("mask", "segm")):
        by_category = expected[name].pop("per_category_AP")
        np.testing.assert_allclose(
            numbers(scores, kind), list(expected[name].values()), rtol=0, atol=1e-6
        )
        np.testing.assert_allclose(numbers(scores, kind), published(folder)[name], atol=5.1e-4)
        wanted = [np.nan if by_category[str(i)] is None else by_category[str(i)] for i in ids]
        np.testing.assert_allclose(scores.class_values[f"{kind}_ap"], wanted, atol=1e-6)


@pytest.mark.data
@pytest.mark.parametrize("backend", BACKENDS)
def test_second_reference(real_data, tmp_path, backend):
    """No crowds, areas of boxes."""
    folder = real_data("reference_eval") / "coco_sampled_bbox"
    content, rows = (json.loads((folder / f"{name}.json").read_text()) for name in ("gt", "dt"))
    scores = evaluated(tmp_path / "truth.json", content, rows, masks=False, backend=backend)
    expected = json.loads((folder / "expected.json").read_text())
    np.testing.assert_allclose(numbers(scores, "box"), list(expected.values()), atol=1e-6)
    assert len(numbers(scores, "mask")) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_case_by_hand(tmp_path, backend):
    """One of two objects found at IoU 0.81, and the other missed."""
    objects = [[0.0, 0.0, 100.0, 100.0], [120.0, 120.0, 100.0, 100.0]]
    annotations = [
        {"id": i, "image_id": 5, "category_id": 3, "bbox": box} for i, box in enumerate(objects)
    ]  # with the id 0, without iscrowd and area
    images = [{"id": 5, "height": SIDE, "width": SIDE, "file_name": "5.jpg"}]
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    row = {"image_id": 5, "category_id": 3, "score": 0.5, "bbox": [0.0, 0.0, 90.0, 90.0]}
    scores = evaluated(tmp_path / "truth.json", content, [row], masks=False, backend=backend)
    # Recall 0.5, so 51 of 101 recall points, at 7 of the 10 thresholds (0.5 to 0.8).
    assert scores.values["box_ap50"] == pytest.approx(51 / 101, abs=1e-12)
    assert scores.values["box_ap"] == pytest.approx(0.7 * 51 / 101, abs=1e-12)
    assert scores.values["box_ar100"] == pytest.approx(0.35, abs=1e-12)
    assert np.isnan(scores.values["box_ap_small"])
    assert scores.values["box_ap_large"] == scores.values["box_ap"]
    assert scores.curves["box"].precision.shape == (10, 101, 3, 4, 3)
    assert scores.curves["box"].precision[0, :51, 1, 0, 2] == pytest.approx(1.0)


def test_table(tmp_path):
    content, rows = drawn_set(1)
    scores = evaluated(tmp_path / "truth.json", content, rows, masks=False)
    title, dog, _, cup, mean = scores.table(["dog", "cat", "cup"]).splitlines()
    assert title.split() == ["class", "box", "AP", "box", "AP50"]
    assert float(dog.split()[1]) == pytest.approx(100 * scores.class_values["box_ap"][0], abs=0.01)
    assert cup.split() == ["cup", "-", "-"]
    assert float(mean.split()[2]) == pytest.approx(100 * scores.values["box_ap50"], abs=0.01)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_found_and_nothing_to_find(tmp_path, backend):
    content, _ = drawn_set(1)
    found = evaluated(tmp_path / "a.json", content, [], masks=True, backend=backend)
    assert found.values["box_ap"] == found.values["mask_ar100"] == 0
    bare = content | {"annotations": []}
    _, rows = drawn_set(1)
    scores = evaluated(tmp_path / "b.json", bare, rows, masks=False, backend=backend)
    assert np.isnan(list(scores.values.values())).all()


def test_images_not_given_do_not_count(tmp_path):
    """An evaluation cut short scores what it saw, and says how much that was."""
    content, rows = drawn_set(1)
    path = tmp_path / "truth.json"
    kept = {image["id"] for image in content["images"][:4]}
    ours = evaluator(path, content, masks=False)
    for image_id, detections in by_image(content, rows):
        if image_id in kept:
            ours.update(image_id, detections)
    cut = {k: [x for x in v if x.get("image_id", x["id"]) in kept] for k, v in content.items()}
    cut["categories"] = CATEGORIES
    few = [row for row in rows if row["image_id"] in kept]
    stats, _ = by_pycocotools_of(tmp_path / "cut.json", cut, few)
    scores = ours.compute()
    np.testing.assert_allclose(numbers(scores, "box"), stats, atol=1e-14)
    assert (scores.images, len(ours)) == (4, 4)
    ours.reset()
    assert len(ours) == 0


def by_pycocotools_of(path, content, rows):
    path.write_text(json.dumps(content))
    return by_pycocotools(path, rows, "bbox")


def with_masks(rows):
    return [row | {"segmentation": drawn_mask(row["bbox"])} for row in rows]


@pytest.mark.parametrize("shares", [[9], [5, 4], [0, 9], [7, 0, 2], [3, 3, 3], [9, 9]])
def test_processes_agree_to_the_last_digit(tmp_path, run_processes, shares):
    """Unequal shares, a process without any image, and images that two processes give."""
    content, rows = drawn_set(3)
    whole = evaluated(tmp_path / "whole.json", content, with_masks(rows), masks=True)
    pairs = list(by_image(content, with_masks(rows)))
    ours = evaluator(tmp_path / "truth.json", content, masks=True)

    def share(rank):
        start = sum(shares[:rank]) % len(pairs)
        for image_id, detections in pairs[start : start + shares[rank]]:
            ours.update(image_id, detections)
        scores = ours.compute()
        return scores.values, scores.class_values, scores.images, list(scores.curves)

    results = run_processes(share, len(shares))
    for rank, (values, class_values, images, curves) in enumerate(results):
        np.testing.assert_array_equal(list(values.values()), list(whole.values.values()))
        for name, column in whole.class_values.items():
            np.testing.assert_array_equal(class_values[name], column)
        assert images == 9
        assert curves == (["box", "mask"] if rank == 0 else [])


def test_other_backends_of_processes_send_over_gloo(tmp_path, run_processes, monkeypatch):
    """As with NCCL, of which CPU tensors cannot make use."""
    content, rows = drawn_set(3)
    ours = evaluator(tmp_path / "truth.json", content, masks=False)
    made = []

    def new_group(backend, _original=dist.new_group):
        made.append(backend)
        return _original(backend=backend)

    def share(rank):
        monkeypatch.setattr(dist, "get_backend", lambda: "nccl")
        monkeypatch.setattr(dist, "new_group", new_group)
        for image_id, detections in list(by_image(content, rows))[rank::2]:
            ours.update(image_id, detections)
        return ours.compute().values, ours.compute().values, made

    for first, second, groups in run_processes(share, 2):
        assert first["box_ap"] == second["box_ap"] > 0
        assert groups == ["gloo"]


def test_every_process_hears_of_an_error(tmp_path, run_processes):
    content, rows = drawn_set(3)
    ours = evaluator(tmp_path / "truth.json", content, masks=False)
    (tmp_path / "truth.json").write_text("{}")

    def share(rank):
        ours.update(*next(iter(by_image(content, rows))))
        with pytest.raises(UserError, match=r"truth\.json cannot be read as COCO") as info:
            ours.compute()
        return str(info.value)

    first, second = run_processes(share, 2)
    assert first == second


def test_memory_of_a_detection(tmp_path):
    """At most 1 kB each, with masks of photographs twice as large as COCO's."""
    height, width = 960, 1280
    draw = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]
    codes = []
    for _ in range(20):
        y, x, radius = draw.uniform(200, 800), draw.uniform(200, 1000), draw.lognormal(4.5, 0.6)
        ripple = 1 + 0.1 * np.sin(7 * np.arctan2(rows - y, columns - x))
        pixels = np.hypot(rows - y, columns - x) < radius * ripple
        codes.append(run_lengths.encode(np.asfortranarray(pixels.astype(np.uint8)))["counts"])
    images = [{"id": i, "height": height, "width": width} for i in range(20)]
    content = {"images": images, "annotations": [], "categories": CATEGORIES}
    ours = evaluator(tmp_path / "truth.json", content, masks=True)
    for image in images:
        arrays = np.zeros((100, 4), np.float32), np.ones(100, np.float32), np.zeros(100, np.int16)
        ours.update(image["id"], ImageDetections((height, width), *arrays, 5 * codes))
    assert len(pickle.dumps(ours._found)) / 2000 < 500
    held = sum(x.nbytes for p in ours._found.values() for x in (p.boxes, p.scores, p.labels))
    assert held / 2000 == 22  # and nothing beside it keeps a larger array alive
    assert all(x.base is None for p in ours._found.values() for x in p[1:4])


def test_collector_is_left_as_it_was(tmp_path):
    content, rows = drawn_set(2)
    evaluated(tmp_path / "truth.json", content, rows, masks=False)
    assert gc.isenabled()


def test_wrong_use(tmp_path):
    content, rows = drawn_set(1)
    ours = evaluator(tmp_path / "truth.json", content, masks=True)
    image_id, good = next(x for x in by_image(content, with_masks(rows)) if len(x[1].scores))
    with pytest.raises(ValueError, match="image 999999 is not in the split"):
        ours.update(999999, good)
    with pytest.raises(ValueError, match="masks are to be evaluated"):
        ours.update(image_id, good._replace(rles=None))
    with pytest.raises(ValueError, match="not a finite number"):
        ours.update(image_id, good._replace(boxes=good.boxes * np.nan))
    with pytest.raises(UserError, match=r"2 class names for 1 category ids"):
        CocoEvaluator(
            tmp_path / "truth.json", image_ids=[1], category_ids=[1], class_names="ab", masks=False
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("annotations"), "KeyError: 'annotations'"),
        (lambda content: content["annotations"][0].pop("segmentation"), "has no mask"),
        (lambda content: content["images"][0].update(width=7), r"said to be 7 x 240"),
    ],
)
def test_files_that_cannot_be_evaluated(tmp_path, change, message):
    content, rows = drawn_set(1)
    pairs = list(by_image(content, with_masks(rows)))
    change(content)
    ours = evaluator(tmp_path / "truth.json", content, masks=True)
    for image_id, detections in pairs:
        ours.update(image_id, detections)
    with pytest.raises(UserError, match=message) as info:
        ours.compute()
    assert "truth.json" in str(info.value)


def test_missing_file(tmp_path):
    content, _ = drawn_set(1)
    ours = evaluator(tmp_path / "truth.json", content, masks=False)
    (tmp_path / "truth.json").unlink()
    with pytest.raises(UserError, match=r"truth\.json cannot be read"):
        ours.compute()
