import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

from gmf_platform.deploy.writers import ClassificationWriter
from gmf_platform.evaluation import most_probable

CLASSES = ["ant", "bee, wild", "caterpillar"]


@pytest.fixture
def photos(tmp_path):
    """Three pictures, one in a sub-folder, with their names in the output folder."""
    names = {}
    for i, name in enumerate(("b", "a", "more/a")):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((50, 80, 3), 60 * i, np.uint8)).save(path)
        names[path] = path.relative_to(tmp_path / "photos").with_suffix("")
    return names


def write(photos, output, shares, *, rank=0):
    """Write what one process predicted; ``shares`` says which of the images were its own."""
    writer = ClassificationWriter(output, photos, CLASSES)
    trainer = SimpleNamespace(is_global_zero=rank == 0)
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [0.0, 1.0, 5.0]])
    guesses = most_probable(logits)
    writer.on_predict_start(trainer, None)
    if dist.is_initialized():
        dist.barrier()
    for source, guess in list(zip(photos, guesses, strict=True))[shares]:
        writer.write_on_batch_end(trainer, None, [guess], None, {"ids": [str(source)]}, 0, 0)
    writer.on_predict_end(trainer, None)
    writer.teardown(trainer, None, "predict")
    return logits.softmax(1)


def check(photos, output, probabilities):
    with (output / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [str(path) for path in photos]
    assert [row["class_1"] for row in rows] == CLASSES
    assert rows[0]["class_3"] == "caterpillar"
    assert float(rows[2]["probability_1"]) == pytest.approx(probabilities[2, 2].item(), abs=1e-6)
    assert float(rows[0]["probability_2"]) == pytest.approx(probabilities[0, 1].item(), abs=1e-6)
    pictures = sorted(str(p.relative_to(output)) for p in output.rglob("*.jpg"))
    assert pictures == ["a_overlay.jpg", "b_overlay.jpg", "more/a_overlay.jpg"]
    with Image.open(output / "more/a_overlay.jpg") as picture:
        assert (picture.width, picture.height > 50) == (80, True)


def test_a_table_and_pictures(photos, tmp_path):
    probabilities = write(photos, tmp_path / "out", slice(None))
    check(photos, tmp_path / "out", probabilities)
    legend = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert [row["name"] for row in legend] == CLASSES


@pytest.mark.parametrize("own", [(slice(0, 2), slice(2, 3)), (slice(0, 3), slice(0, 0))])
def test_processes_join_their_rows(own, photos, tmp_path, run_processes):
    """The second process may have no image."""
    output = tmp_path / "out"
    results = run_processes(lambda rank: write(photos, output, own[rank], rank=rank), 2)
    check(photos, output, results[0])
