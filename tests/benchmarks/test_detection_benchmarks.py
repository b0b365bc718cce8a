import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as run_lengths


def load(name):
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_coco_evaluation_compares_like_with_like(monkeypatch, capsys):
    words = ["coco_evaluation.py", "--images", "60", "--runs", "1", "--json"]
    monkeypatch.setattr(sys, "argv", words)
    load("coco_evaluation").main()
    report = json.loads(capsys.readouterr().out)
    assert report["detections"] == 6000
    assert report["largest_difference"] < 1e-12
    assert report["times_as_fast"]["pycocotools"] == 1


def ring(size, box):
    """An ellipse with a hole, inside a box."""
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    left, top, width, height = box
    x, y = (columns - left - width / 2) / width * 2, (rows - top - height / 2) / height * 2
    distance = np.hypot(x, y)
    return np.asfortranarray(((distance < 1) & (distance > 0.4)).astype(np.uint8))


@pytest.mark.parametrize(("cells", "low", "high"), [(2, 0, 0.5), (28, 0.99, 1), (56, 1, 1)])
def test_mask_limit_rises_with_the_cells(tmp_path, cells, low, high):
    boxes = [[10.0, 20.0, 60.0, 40.0], [80.0, 5.0, 20.0, 90.0]]
    codes = [run_lengths.encode(ring((100, 120), box)) for box in boxes]
    annotations = [
        {
            "id": i,
            "image_id": 1,
            "category_id": 7,
            "bbox": box,
            "segmentation": code | {"counts": code["counts"].decode()},
        }
        for i, (box, code) in enumerate(zip(boxes, codes, strict=True), 1)
    ]
    images = [{"id": i, "height": 100, "width": 120} for i in (1, 2)]
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 7, "name": "ring"}],
    }
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content))
    scores = load("mask_limit").mask_limit(path, cells=cells)
    assert scores.values["box_ap"] == pytest.approx(1)
    assert low <= scores.values["mask_ap"] <= high + 1e-9
