import io
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from datamodules import images
from datamodules.images import (
    DataError,
    Flaw,
    check_image,
    image_size,
    read_colours,
    read_image,
    read_mask,
)
from gmf_platform.errors import UserError

ORIENTATION = 0x0112


def photo(height=90, width=130):
    noise = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def encoded(picture, kind, **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def jpeg(**options):
    return encoded(Image.fromarray(photo()), "JPEG", quality=92, **options)


def stored(folder, data, name="picture"):
    path = folder / name
    path.write_bytes(data)
    return path


def assert_refused(read, path, *words):
    with pytest.raises(DataError) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert len(text.splitlines()) <= 2
    for word in words:
        assert word in text
    return text


# Images


def test_lossless_rgb_is_read_exactly(tmp_path):
    path = stored(tmp_path, encoded(Image.fromarray(photo()), "PNG"))
    image = read_image(path)
    np.testing.assert_array_equal(image, photo())
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert image.flags.writeable


def test_jpeg_agrees_with_pillow(tmp_path):
    path = stored(tmp_path, jpeg())
    difference = np.abs(read_image(str(path)).astype(int) - np.asarray(Image.open(path)))
    assert difference.mean() < 0.5


def test_greyscale_is_repeated(tmp_path):
    grey = photo()[..., 1]
    path = stored(tmp_path, encoded(Image.fromarray(grey), "PNG"))
    np.testing.assert_array_equal(read_image(path), np.dstack([grey] * 3))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_agrees_with_pillow(tmp_path, kind):
    path = stored(tmp_path, encoded(Image.fromarray(photo()).convert("CMYK"), kind))
    reference = np.asarray(Image.open(path).convert("RGB")).astype(int)
    difference = np.abs(read_image(path) - reference)
    assert difference.mean() < 3


def test_alpha_is_dropped(tmp_path):
    alpha = np.full((90, 130, 1), 100, dtype=np.uint8)
    rgba = Image.fromarray(np.dstack([photo(), alpha]))
    np.testing.assert_array_equal(read_image(stored(tmp_path, encoded(rgba, "PNG"))), photo())
    grey = Image.fromarray(np.dstack([photo()[..., :1], alpha]))
    expected = np.dstack([photo()[..., 0]] * 3)
    np.testing.assert_array_equal(read_image(stored(tmp_path, encoded(grey, "PNG"))), expected)


@pytest.mark.parametrize("channels", [slice(None), 0], ids=["rgb", "grey"])
def test_sixteen_bits_become_eight(tmp_path, channels):
    wide = photo()[..., channels].astype(np.uint16) * 257
    data = cv2.imencode(".png", wide[..., ::-1] if wide.ndim == 3 else wide)[1].tobytes()
    image = read_image(stored(tmp_path, data))
    np.testing.assert_array_equal(image[..., channels], photo()[..., channels])


def test_palette_image_gives_its_colours(tmp_path):
    picture = Image.fromarray(photo()).quantize(16)
    path = stored(tmp_path, encoded(picture, "PNG"))
    np.testing.assert_array_equal(read_image(path), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured_by_image_and_size(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(kind, {})
    data = encoded(Image.fromarray(photo()), kind, exif=exif, **options)
    path = stored(tmp_path, data)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB")).astype(int)
    image = read_image(path)
    assert image.shape == upright.shape
    assert np.abs(image - upright).mean() < 0.5
    assert image_size(path) == image.shape[:2]


# Broken files


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("kept", [0.1, 0.3, 0.5, 0.8, 0.95, -2, -1])
def test_cut_off_jpeg_is_refused(tmp_path, kept, progressive):
    data = jpeg(progressive=progressive)
    cut = data[: int(len(data) * kept)] if kept > 0 else data[:kept]
    assert_refused(read_image, stored(tmp_path, cut), "cut off")


def test_cut_off_jpeg_is_refused_where_opencv_would_decode_it(tmp_path, monkeypatch):
    monkeypatch.setattr(images.cv2, "imdecode", lambda *_: np.full((90, 130, 3), 128, np.uint8))
    data = jpeg()
    assert read_image(stored(tmp_path, data)).mean() == 128
    assert_refused(read_image, stored(tmp_path, data[: len(data) // 2]), "cut off")


def test_jpeg_whose_end_is_zeros_is_refused(tmp_path):
    data = jpeg()
    half = len(data) // 2
    assert_refused(read_image, stored(tmp_path, data[:half] + bytes(len(data) - half)))


def test_jpeg_with_more_behind_its_end_is_read(tmp_path):
    path = stored(tmp_path, jpeg() + b"maker notes" * 20)
    np.testing.assert_array_equal(read_image(path), read_image(stored(tmp_path, jpeg(), "clean")))


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.9])
@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "TIFF"])
def test_other_cut_off_files_are_refused(tmp_path, kind, kept):
    data = encoded(Image.fromarray(photo()), kind)
    assert_refused(read_image, stored(tmp_path, data[: int(len(data) * kept)]))


def test_damaged_png_is_refused_by_both_readers(tmp_path):
    data = bytearray(encoded(Image.fromarray(photo()[..., 0]), "PNG"))
    data[len(data) // 2] ^= 255
    path = stored(tmp_path, bytes(data))
    assert_refused(read_image, path, "cannot be decoded")
    assert_refused(read_mask, path, "cannot be decoded")


@pytest.mark.parametrize("read", [read_image, read_mask, image_size, check_image])
def test_files_that_are_no_image_are_refused(tmp_path, read):
    assert_refused(read, tmp_path / "absent.jpg", "no such file")
    assert_refused(read, stored(tmp_path, b""), "is empty")
    assert_refused(read, tmp_path, "cannot be read")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    assert_refused(read, stored(tmp_path, pointer), "is not an image", "git-lfs")


class Unreadable(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return read_image("/absent/picture.jpg")


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_stay_user_errors_out_of_a_loader_worker(workers):
    with pytest.raises(UserError, match=r"/absent/picture\.jpg: there is no such file") as caught:
        next(iter(DataLoader(Unreadable(), num_workers=workers)))
    assert caught.type is DataError


# Masks


@pytest.mark.parametrize("mode", ["L", "P"])
def test_eight_bit_masks_give_label_numbers(tmp_path, mode):
    labels = np.random.default_rng(0).integers(0, 151, (40, 50), dtype=np.uint8)
    picture = Image.fromarray(labels)
    if mode == "P":
        picture.putpalette(np.random.default_rng(1).integers(0, 256, 768).astype(np.uint8).tolist())
    path = stored(tmp_path, encoded(picture, "PNG"))
    assert Image.open(path).mode == mode
    mask = read_mask(path)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, labels)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_narrow_palettes_give_indices(tmp_path, bits):
    labels = np.random.default_rng(0).integers(0, 2**bits, (40, 50), dtype=np.uint8)
    picture = Image.fromarray(labels)
    picture.putpalette([v for n in range(2**bits) for v in (200 - n, n, 7 * n)])
    path = stored(tmp_path, encoded(picture, "PNG", bits=bits))
    np.testing.assert_array_equal(read_mask(path), labels)


def test_one_bit_masks_give_0_and_1(tmp_path):
    labels = np.random.default_rng(0).integers(0, 2, (40, 50), dtype=np.uint8)
    path = stored(tmp_path, encoded(Image.fromarray(labels * 255).convert("1"), "PNG"))
    np.testing.assert_array_equal(read_mask(path), labels)


def test_sixteen_bit_masks_keep_their_numbers(tmp_path):
    labels = np.random.default_rng(0).integers(0, 65536, (40, 50)).astype(np.uint16)
    mask = read_mask(stored(tmp_path, cv2.imencode(".png", labels)[1].tobytes()))
    assert mask.dtype == np.uint16
    np.testing.assert_array_equal(mask, labels)


def test_wide_masks_are_narrowed_or_refused(tmp_path):
    labels = np.random.default_rng(0).integers(0, 65536, (40, 50)).astype(np.int32)
    mask = read_mask(stored(tmp_path, encoded(Image.fromarray(labels), "TIFF")))
    assert mask.dtype == np.uint16
    np.testing.assert_array_equal(mask, labels)
    labels[3, 4] = 65536
    path = stored(tmp_path, encoded(Image.fromarray(labels), "TIFF"))
    assert_refused(read_mask, path, "outside 0..65535")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colour_masks_are_refused(tmp_path, mode):
    path = stored(tmp_path, encoded(Image.fromarray(photo()).convert(mode), "PNG"))
    assert_refused(read_mask, path, "is a colour picture, not label numbers", mode)


def test_jpeg_masks_are_refused(tmp_path):
    path = stored(tmp_path, encoded(Image.fromarray(photo()[..., 0]), "JPEG"))
    assert_refused(read_mask, path, "JPEG")


def test_cut_off_mask_is_refused(tmp_path):
    data = encoded(Image.fromarray(photo()[..., 0]), "PNG")
    assert_refused(read_mask, stored(tmp_path, data[: len(data) // 2]), "cut off")


# Sizes


def test_size_needs_only_the_header(tmp_path):
    data = encoded(Image.fromarray(photo()), "PNG")
    assert image_size(stored(tmp_path, data[:60])) == (90, 130)


def test_size_of_a_cut_off_header_is_refused(tmp_path):
    assert_refused(image_size, stored(tmp_path, jpeg()[:100]))


# Checks before any work


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
def test_a_whole_file_is_seen_without_decoding_it(tmp_path, monkeypatch, kind):
    path = stored(tmp_path, encoded(Image.fromarray(photo()), kind))
    monkeypatch.delattr(images, "_load_strictly")
    check_image(path)


def test_what_stands_behind_an_image_is_no_harm(tmp_path):
    check_image(stored(tmp_path, jpeg() + b"maker notes" * 20))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("kept", [0.3, 0.99, -1, -4, -12])
def test_a_cut_off_file_is_seen(tmp_path, kind, kept):
    data = encoded(Image.fromarray(photo()), kind)
    path = stored(tmp_path, data[: kept if kept < 0 else int(len(data) * kept)])
    text = assert_refused(check_image, path)
    assert text == assert_refused(read_image, path)


@pytest.mark.data
def test_real_photos_and_masks_agree_with_pillow():
    if "GMF_DATA" not in os.environ:
        pytest.skip("GMF_DATA does not point to the small real data sets")
    root = Path(os.environ["GMF_DATA"]) / "ade20k_mini"
    photos = sorted((root / "images").rglob("*.jpg"))
    assert photos
    for path in photos:
        image = read_image(path)
        reference = np.asarray(Image.open(path).convert("RGB")).astype(int)
        assert np.abs(image - reference).mean() < 1
        assert image_size(path) == image.shape[:2]
    for path in sorted((root / "annotations").rglob("*.png")):
        mask = read_mask(path)
        assert mask.max() <= 150
        assert mask.shape == image_size(path)


# Colours


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_are_read_exactly(tmp_path, mode):
    colours = np.array([[[1, 2, 3], [255, 0, 128]], [[0, 0, 0], [1, 2, 3]]], np.uint8)
    path = stored(tmp_path, encoded(Image.fromarray(colours).convert(mode), "PNG"))
    assert read_colours(path).tolist() == [[0x010203, 0xFF0080], [0, 0x010203]]


def test_colours_of_a_palette_picture(tmp_path):
    picture = Image.fromarray(np.array([[0, 1]], np.uint8))
    picture.putpalette([9, 8, 7, 1, 2, 3])
    assert picture.mode == "P"
    path = stored(tmp_path, encoded(picture, "PNG"))
    assert read_colours(path).tolist() == [[0x090807, 0x010203]]


def test_grey_values_are_colours_too(tmp_path):
    path = stored(tmp_path, encoded(Image.fromarray(np.array([[0, 7]], np.uint8)), "PNG"))
    assert read_colours(path).tolist() == [[0, 0x070707]]


def test_colours_of_wrong_files(tmp_path):
    assert_refused(read_colours, stored(tmp_path, jpeg()), "JPEG", "PNG")
    wide = Image.fromarray(np.array([[0, 700]], np.uint16))
    assert_refused(read_colours, stored(tmp_path, encoded(wide, "PNG")), "mode I;16", "palette")


def test_errors_know_their_kind(tmp_path):
    """`check-data` counts by it."""
    png = encoded(Image.fromarray(photo()), "PNG")
    for data, read, flaw in (
        (jpeg()[:-500], read_image, Flaw.TRUNCATED),
        (png[:-500], read_mask, Flaw.TRUNCATED),
        (b"no image", read_image, Flaw.UNREADABLE),
        (b"", read_mask, Flaw.UNREADABLE),
        (png, read_mask, Flaw.COLOUR),
    ):
        with pytest.raises(DataError) as caught:
            read(stored(tmp_path, data))
        assert caught.value.flaw is flaw
