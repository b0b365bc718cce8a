import numpy as np

from gmf_platform.evaluation.class_pictures import captioned, compare_classes
from gmf_platform.evaluation.drawing import comparison

GUESSES = [("garbage truck", 0.75), ("church", 0.125), ("tench", 0.0625)]


def is_near(pixels, colour):
    return np.abs(pixels.astype(int) - colour).max(axis=-1) < 40


def test_a_row_has_image_truth_and_guesses():
    image = np.full((50, 100, 3), (10, 20, 200), dtype=np.uint8)
    picture, labels = compare_classes(image, "church", GUESSES, width=300)
    assert picture.shape == (150, 900, 3)
    assert labels == set()
    assert (picture[:, :300] == (10, 20, 200)).all()
    assert is_near(picture[:, 300:600], (34, 139, 34)).any()  # the true name
    guessed = picture[:, 600:]
    red, green = (is_near(guessed, colour) for colour in ((205, 55, 40), (34, 139, 34)))
    assert red[:20].any()
    assert green[25:50].any()  # the second guess is right
    assert not green[:20].any()
    bars = (guessed != 255).any(-1)[[22, 47, 72]].sum(1)  # under the letters
    assert bars.tolist() == [226, 38, 19]  # of 300, by probability


def test_a_low_image_keeps_room_for_the_names():
    picture, _ = compare_classes(np.zeros((10, 300, 3), np.uint8), "church", GUESSES)
    assert picture.shape[0] == 80


def test_rows_of_other_heights_make_one_sheet():
    rows = [
        compare_classes(np.zeros((height, 100, 3), np.uint8), "tench", GUESSES)
        for height in (50, 120)
    ]
    assert comparison(rows, ["tench", "church"]).shape[1] == 960


def test_a_caption_stands_under_the_image():
    image = np.full((200, 300, 3), 77, dtype=np.uint8)
    picture = captioned(image, GUESSES)
    assert picture.shape[1:] == (300, 3)
    assert picture.shape[0] > 250
    assert np.array_equal(picture[:200], image)
    assert (picture[200:] == 0).all(-1).any()  # letters
