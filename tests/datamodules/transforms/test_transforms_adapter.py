import hashlib
import os
import pickle
import random
import subprocess
import sys
import timeit

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.transforms import (
    Augmentation,
    PhotoMetricDistortion,
    RandomResize,
    train_transform,
)
from gmf_platform.errors import UserError


def sample(height=48, width=64):
    draw = np.random.default_rng(3)
    coarse = draw.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    labels = draw.integers(0, 5, (6, 8), dtype=np.uint8)
    return (
        cv2.resize(coarse, (width, height)),
        cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST),
    )


def chain():
    """The recipe, small, with more of albumentations' own transforms behind it."""
    extra = [A.OneOf([A.GaussianBlur(p=1), A.GaussNoise(p=1)], p=0.8), A.CoarseDropout(p=0.5)]
    return train_transform(crop=32, scale=(96, 32), extra=extra)


def digest(augmentation, *seed):
    image, mask = sample()
    result = augmentation(image=image, mask=mask, seed=seed)
    data = result["image"].tobytes() + result["mask"].tobytes() + repr(result["size"]).encode()
    return hashlib.sha256(data).hexdigest()


class Samples(Dataset):
    def __init__(self, epoch):
        self.epoch = epoch
        self.augmentation = chain()

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return index, digest(self.augmentation, 7, self.epoch, index)


def loaded(epoch, workers, start=None):
    options = {"num_workers": workers, "multiprocessing_context": start, "batch_size": 2}
    shuffled = DataLoader(Samples(epoch), shuffle=True, **options)
    found = {int(i): text for batch in shuffled for i, text in zip(*batch, strict=True)}
    return [found[i] for i in range(10)]


def test_same_key_gives_the_same_sample_and_each_part_of_the_key_counts():
    augmentation = chain()
    first = digest(augmentation, 7, 0, 5)
    others = [digest(augmentation, *seed) for seed in [(8, 0, 5), (7, 1, 5), (7, 0, 6), (7, 5, 0)]]
    assert digest(augmentation, 7, 0, 5) == first
    assert digest(chain(), 7, 0, 5) == first
    assert len({first, *others}) == 5


def test_keys_of_other_lengths_and_sizes_do_not_collide():
    augmentation = Augmentation([RandomResize((64, 48))])
    image, _ = sample()
    ratios = set()
    # numpy's SeedSequence would take several of these for the same.
    keys = [(), (0,), (0, 0), (1,), (1, 0), (0, 1), (2**32,), (2**32, 0), (-1,), (2**63 - 1, 0)]
    for key in keys:
        augmentation(image=image, seed=key)
        ratios.add(augmentation.compose.transforms[0].params["ratio"])
    assert len(ratios) == len(keys)


@pytest.mark.parametrize(("workers", "start"), [(1, "fork"), (4, "fork"), (1, "spawn")])
def test_samples_do_not_depend_on_the_loader(workers, start):
    torch.manual_seed(workers)  # another order of samples
    assert loaded(1, workers, start) == loaded(1, 0)


def test_epochs_differ_in_each_sample():
    assert not set(loaded(0, 0)) & set(loaded(1, 2, "fork"))


def test_global_generators_are_neither_used_nor_touched():
    augmentation = chain()
    np.random.seed(1)
    random.seed(1)
    torch.manual_seed(1)
    states = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist()
    first = digest(augmentation, 1, 2, 3)
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert np.random.get_state()[1].tolist() == states[2]
    np.random.seed(2)
    random.seed(2)
    cv2.setRNGSeed(2)
    assert digest(augmentation, 1, 2, 3) == first


def test_transforms_of_one_chain_draw_independently():
    augmentation = Augmentation([RandomResize((64, 48)), A.HorizontalFlip(), A.VerticalFlip()])
    image, _ = sample()
    drawn = []
    for index in range(800):
        augmentation(image=image, seed=(0, 0, index))
        resize, horizontal, vertical = augmentation.compose.transforms
        drawn.append((resize.params["ratio"], bool(horizontal.params), bool(vertical.params)))
    correlations = np.corrcoef(np.array(drawn, dtype=float).T)
    assert np.abs(correlations - np.eye(3)).max() < 4 / np.sqrt(800)


def test_augmentation_survives_pickling():
    copy = pickle.loads(pickle.dumps(chain()))
    assert digest(copy, 4, 5, 6) == digest(chain(), 4, 5, 6)


def test_input_is_left_as_it_is_and_the_result_is_a_contiguous_copy():
    # Nothing to resize, crop or pad: the likeliest case for a result that shares memory.
    augmentation = train_transform(crop=(48, 64), scale=(64, 48), ratio_range=(1, 1))
    image, mask = sample()
    for index in range(20):
        result = augmentation(image=image, mask=mask, seed=(0, 0, index))
        assert result["image"].flags.c_contiguous
        assert result["mask"].flags.c_contiguous
        result["image"][:] = 0
        result["mask"][:] = 0
    np.testing.assert_array_equal(image, sample()[0])
    np.testing.assert_array_equal(mask, sample()[1])


def test_image_alone_gives_no_mask():
    result = Augmentation([PhotoMetricDistortion()])(image=sample()[0], seed=(0,))
    assert set(result) == {"image", "size"}
    assert result["size"] == (48, 64)


def test_seeding_and_checks_cost_less_than_150_microseconds():
    nothing = Augmentation([])
    image, mask = sample()
    times = timeit.repeat(lambda: nothing(image=image, mask=mask, seed=(1, 2, 3)), number=50)
    assert min(times) / 50 < 150e-6


@pytest.mark.parametrize(
    ("image", "mask", "words"),
    [
        (np.zeros((4, 5), np.uint8), None, "image must be uint8"),
        (np.zeros((4, 5, 3), np.float32), None, "image must be uint8"),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4), np.uint8), "mask must be uint8"),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.int64), "mask must be uint8"),
    ],
)
def test_wrong_arrays_are_refused(image, mask, words):
    with pytest.raises(UserError, match=words):
        chain()(image=image, mask=mask, seed=(0,))


def test_import_switches_off_the_network_request():
    code = "import os, datamodules.transforms; print(os.environ['NO_ALBUMENTATIONS_UPDATE'])"
    clean = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}
    output = subprocess.check_output([sys.executable, "-c", code], env=clean, text=True)
    assert output.strip() == "1"
