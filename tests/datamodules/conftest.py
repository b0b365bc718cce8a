"""A segmentation folder that tests may spoil."""

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
