import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO

from gmf_platform.deploy.writers import DetectionWriter
from gmf_platform.evaluation import ImageDetections

CLASSES = ["dog", "cat"]


def photographs(folder, *names):
    """Grey pictures of 60 x 80, each with its name in the output folder."""
    sources = {}
    for name in names:
        source = folder / "photos" / name
        source.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 60), (90, 90, 90)).save(source)
        sources[source] = source.relative_to(folder / "photos").with_suffix("")
    return sources


def found(*scores, masks=False):
    """A detection with each score; the labels take turns."""
    boxes = np.array([[10 + i, 20, 30 + i, 50] for i in range(len(scores))], np.float32)
    pixels = np.zeros((60, 80), np.uint8, order="F")
    pixels[20:50, 10:30] = 1
    codes = [run_lengths.encode(pixels)["counts"]] * len(scores)
    return ImageDetections(
        (60, 80),
        boxes.reshape(-1, 4),
        np.array(scores, np.float32),
        np.arange(len(scores), dtype=np.int16) % 2,
        codes if masks else None,
    )


def written(folder, sources, predictions, **settings):
    """What a trainer would have the writer do; gives the json."""
    writer = DetectionWriter(folder / "out", sources, CLASSES, **settings)
    trainer = SimpleNamespace(is_global_zero=True)
    writer.on_predict_start(trainer, None)
    batch = {"ids": [str(source) for source in sources]}
    writer.write_on_batch_end(trainer, None, predictions, None, batch, 0, 0)
    writer.on_predict_end(trainer, None)
    writer.teardown(trainer, None, "predict")
    return json.loads((folder / "out" / "predictions.json").read_text())


def test_rows_are_coco_results(tmp_path):
    sources = photographs(tmp_path, "000000000139.jpg", "more/42.png")
    predictions = [found(0.9, 0.1, masks=True), found()]
    rows = written(tmp_path, sources, predictions, category_ids=[18, 17])
    assert [row["image_id"] for row in rows] == [139, 139]
    assert [row["category_id"] for row in rows] == [18, 17]
    assert [row["category"] for row in rows] == CLASSES
    assert rows[1]["bbox"] == [11, 20, 20, 30]
    assert rows[0]["score"] == pytest.approx(0.9)
    assert rows[0]["file_name"].endswith("000000000139.jpg")
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i, "height": 60, "width": 80} for i in (139, 42)],
        "annotations": [],
        "categories": [{"id": 18}, {"id": 17}],
    }
    truth.createIndex()
    results = truth.loadRes(str(tmp_path / "out" / "predictions.json"))
    assert results.annToMask(results.anns[1]).sum() == 20 * 30


def test_images_without_a_number(tmp_path):
    """Numbered from 1; a category is its label if nothing else is known."""
    sources = photographs(tmp_path, "b.jpg", "7.jpg")
    rows = written(tmp_path, sources, [found(0.9), found(0.8, 0.7)])
    assert [row["image_id"] for row in rows] == [1, 2, 2]
    assert [row["category_id"] for row in rows] == [0, 0, 1]
    assert "segmentation" not in rows[0]


def test_images_of_one_number(tmp_path):
    sources = photographs(tmp_path, "a/7.jpg", "b/7.jpg")
    rows = written(tmp_path, sources, [found(0.9), found(0.8)])
    assert [row["image_id"] for row in rows] == [1, 2]


def test_pictures_and_legend(tmp_path):
    sources = photographs(tmp_path, "a.jpg", "more/b.jpg")
    rows = written(tmp_path, sources, [found(0.9, 0.2), found(0.2)])
    assert len(rows) == 3  # the json has what the pictures leave out
    out = tmp_path / "out"
    drawn, blank = (np.asarray(Image.open(out / f"{x}_overlay.jpg")) for x in ("a", "more/b"))
    assert drawn.shape == (60, 80, 3)
    assert np.abs(drawn.astype(int) - 90).max() > 50
    assert np.abs(blank.astype(int) - 90).max() < 5
    assert [row["name"] for row in json.loads((out / "classes.json").read_text())] == CLASSES
    assert sorted(path.name for path in out.iterdir()) == [
        "a_overlay.jpg",
        "classes.json",
        "more",
        "predictions.json",
    ]


def test_nothing_found(tmp_path):
    assert written(tmp_path, photographs(tmp_path, "a.jpg"), [found()]) == []


def test_processes_write_one_file(tmp_path, run_processes):
    """The second of three has no image; the order is that of the images."""
    sources = photographs(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    shares = [[2, 0], [], [1]]

    def share(rank):
        writer = DetectionWriter(tmp_path / "out", sources, CLASSES)
        trainer = SimpleNamespace(is_global_zero=rank == 0)
        if shares[rank]:
            writer.on_predict_start(trainer, None)
            batch = {"ids": [str(list(sources)[i]) for i in shares[rank]]}
            predictions = [found(0.1 * (i + 1)) for i in shares[rank]]
            writer.write_on_batch_end(trainer, None, predictions, None, batch, 0, 0)
        writer.teardown(trainer, None, "predict")

    run_processes(share, 3)
    rows = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [round(row["score"], 3) for row in rows] == [0.1, 0.2, 0.3]
