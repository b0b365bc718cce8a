"""A segmentation folder that tests may spoil."""

import json

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def make_folder(tmp_path):
    """Write noise in ADE20K's layout: training a, b, c and validation d, e; labels 0, 1, 2."""

    def make(size=(40, 50)):
        generator = np.random.default_rng(0)
        for split, names in (("training", "abc"), ("validation", "de")):
            images, masks = (tmp_path / kind / split for kind in ("images", "annotations"))
            images.mkdir(parents=True)
            masks.mkdir(parents=True)
            for name in names:
                image = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(image).save(images / f"{name}.jpg")
                mask = generator.integers(0, 3, size, dtype=np.uint8)
                Image.fromarray(mask).save(masks / f"{name}.png")
        return tmp_path

    return make


@pytest.fixture
def make_coco(tmp_path):
    """Write one annotation file and grey images; gives the file's path.

    ``images`` maps ids to (width, height); annotations are given without their ids, which count
    from 1, unless they have one; of whatever else is left out, a usual value is taken.
    """

    def make(images, annotations, *, categories=((3, "cat"), (9, "dog")), split="train", **others):
        folder = tmp_path / f"{split}2017"
        folder.mkdir(parents=True)
        (tmp_path / "annotations").mkdir(exist_ok=True)
        for number, (width, height) in images.items():
            noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
            Image.fromarray(noise).save(folder / f"{number}.png")
        usual = {"iscrowd": 0, "category_id": categories[0][0], "image_id": next(iter(images))}
        content = {
            "images": [
                {"id": number, "file_name": f"{number}.png", "width": width, "height": height}
                for number, (width, height) in images.items()
            ],
            "annotations": [
                usual | {"id": number, "segmentation": []} | annotation
                for number, annotation in enumerate(annotations, start=1)
            ],
            "categories": [{"id": number, "name": name} for number, name in categories],
        }
        path = tmp_path / "annotations" / f"instances_{split}2017.json"
        path.write_text(json.dumps(content | others))
        return path

    return make
