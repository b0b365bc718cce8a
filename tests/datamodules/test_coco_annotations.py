"""Annotations are flat arrays: what loader processes share stays shared."""

import gc
import json
import os
import pickle
from collections import deque
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from datamodules.coco_annotations import Ragged
from datamodules.coco_json import read_coco

SMAPS = Path("/proc/self/smaps_rollup")


def write(folder, images, per_image):
    """A file of many polygons of many points."""
    draw = np.random.default_rng(0)
    corners = draw.uniform(0, 400, (images * per_image, 2)).round(2)
    rings = (corners[:, None] + draw.uniform(0, 90, (images * per_image, 25, 2))).round(2)
    content = {
        "images": [
            {"id": i, "file_name": f"{i:012d}.jpg", "width": 640, "height": 480}
            for i in range(images)
        ],
        "annotations": [
            {
                "id": i,
                "image_id": i % images,
                "category_id": 1 + i % 3,
                "iscrowd": 0,
                "bbox": [*corner, 90.0, 80.0],
                "segmentation": [ring],
            }
            for i, (corner, ring) in enumerate(
                zip(corners.tolist(), rings.reshape(-1, 50).tolist(), strict=True)
            )
        ],
        "categories": [{"id": i, "name": str(i)} for i in (1, 2, 3)],
    }
    path = folder / f"{images}.json"
    path.write_text(json.dumps(content))
    return path, content


def reachable(start):
    """How many Python objects hang on one, arrays counted once each."""
    seen, waiting = {id(start)}, deque([start])
    while waiting:
        for other in gc.get_referents(waiting.popleft()):
            if id(other) not in seen and not isinstance(other, type):
                seen.add(id(other))
                waiting.append(other)
    return len(seen)


def arrays(read):
    for field in fields(read):
        value = getattr(read, field.name)
        if isinstance(value, np.ndarray):
            yield value
        elif isinstance(value, Ragged):
            yield from (value.values, value.ends)


def test_no_object_belongs_to_an_annotation_or_image(tmp_path):
    few, many = (read_coco(write(tmp_path, n, 4)[0], with_masks=True) for n in (3, 300))
    assert len(many.boxes) == 1200
    assert all(array.dtype != object for array in arrays(many))
    gc.collect()
    assert reachable(list(vars(many).values())) == reachable(list(vars(few).values()))


def test_pickled_it_is_its_arrays(tmp_path):
    """What a spawned worker gets: the same arrays, and next to nothing beside them."""
    read = read_coco(write(tmp_path, 50, 4)[0], with_masks=True)
    data = pickle.dumps(read)
    assert len(data) < sum(array.nbytes for array in arrays(read)) + 6000
    copy = pickle.loads(data)
    assert all(np.array_equal(a, b) for a, b in zip(arrays(copy), arrays(read), strict=True))
    assert copy.targets(3).rles == read.targets(3).rles


def grown(touch):
    """By how many bytes the memory of a forked process of its own grows while it runs ``touch``."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            before = private()
            touch()
            os.write(writer, str(private() - before).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as file:
        return int(file.read())


def private():
    lines = SMAPS.read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) * 1024


@pytest.mark.skipif(not SMAPS.is_file(), reason="needs Linux's /proc/self/smaps_rollup")
def test_memory_of_a_forked_worker_stays_flat(tmp_path):
    path, content = write(tmp_path, 2000, 8)
    read = read_coco(path, with_masks=True)
    size = sum(array.nbytes for array in arrays(read))
    assert size > 3e6

    def touch_packed():
        for image in range(len(read)):
            read.objects(image)
            read.outlines(image)
            read.file_name(image)

    def touch_objects():
        for annotation in content["annotations"]:
            for ring in annotation["segmentation"]:
                sum(ring)

    gc.collect()
    gc.freeze()  # the collector's own marks would count too
    try:
        packed, objects = grown(touch_packed), grown(touch_objects)
    finally:
        gc.unfreeze()
    assert packed < 1e6
    assert objects > 5 * packed  # what a list of annotations costs each worker
