"""Fast decoding of a region: the pixels of read_image, and close to them at reduced scale."""

import io

import numpy as np
import pytest
from PIL import Image

from datamodules import decode
from datamodules.decode import Box, EncodedImage
from datamodules.images import DataError, Flaw, decode_image
from datamodules.sample_data.scenes import draw_scene

BOXES = [
    Box(0, 0, 301, 403),
    Box(11, 7, 100, 90),
    Box(200, 300, 101, 103),
    Box(3, 5, 17, 222),
    Box(255, 0, 46, 403),
]


@pytest.fixture(scope="module")
def picture():
    scene = draw_scene(0, seed=1, split="train", size=403).image
    return Image.fromarray(scene[:301])


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.fixture(params=["simplejpeg", "OpenCV"])
def decoder(request, monkeypatch):
    if request.param == "OpenCV":
        monkeypatch.setattr(decode, "simplejpeg", None)
    elif decode.simplejpeg is None:
        pytest.skip("simplejpeg is not installed")
    return request.param


@pytest.fixture(scope="module")
def files(picture):
    image = picture
    wide = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return {
        "4:2:0": encoded(image, "JPEG", quality=90),
        "4:4:4": encoded(image, "JPEG", quality=95, subsampling=0),
        "4:2:2": encoded(image, "JPEG", quality=80, subsampling=1),
        "restarts": encoded(image, "JPEG", restart_marker_rows=1),
        "progressive": encoded(image, "JPEG", progressive=True),
        "grey": encoded(image.convert("L"), "JPEG"),
        "CMYK": encoded(image.convert("CMYK"), "JPEG"),
        "EXIF 1": encoded(image, "JPEG", exif=exif(1)),
        "EXIF 3": encoded(image, "JPEG", exif=exif(3)),
        "EXIF 6": encoded(image.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif(6)),
        "PNG": encoded(image, "PNG"),
        "16 bits": encoded(wide, "PNG"),
        "palette": encoded(image.convert("P"), "PNG"),
        "alpha": encoded(image.convert("RGBA"), "PNG"),
        "WebP": encoded(image, "WEBP"),
        "BMP": encoded(image, "BMP"),
    }


def test_full_scale_is_read_image_bit_for_bit(files, decoder):
    for kind, data in files.items():
        image = EncodedImage.open(data, "a.jpg")
        whole = decode_image(data, "a.jpg")
        assert image.size == whole.shape[:2] == (301, 403), kind
        for box in BOXES:
            part = image.region(box, at_least=10_000)
            assert part.flags.c_contiguous
            expected = whole[box.top : box.top + box.height, box.left : box.left + box.width]
            np.testing.assert_array_equal(part, expected, err_msg=kind)


def test_plain_jpegs_are_cut_short_and_no_others(files):
    plain = {kind for kind, data in files.items() if EncodedImage.open(data, "a").height_at}
    assert plain == {"4:2:0", "4:4:4", "4:2:2", "restarts", "EXIF 1"}


def test_rows_below_the_region_are_not_decoded(picture, monkeypatch):
    if decode.simplejpeg is None:
        pytest.skip("simplejpeg is not installed")
    heights = []
    whole = decode.simplejpeg.decode_jpeg

    def spy(*args, **kwargs):
        image = whole(*args, **kwargs)
        heights.append(len(image))
        return image

    monkeypatch.setattr(decode.simplejpeg, "decode_jpeg", spy)
    image = EncodedImage.open(encoded(picture, "JPEG"), "a.jpg")
    image.region(Box(20, 0, 80, 90), at_least=200)
    image.region(Box(20, 0, 80, 90), at_least=40)
    assert heights == [132, 66]


@pytest.mark.parametrize(
    ("at_least", "factor"), [(76, 1), (75, 2), (39, 2), (38, 4), (20, 4), (19, 8), (1, 8)]
)
def test_scale_is_the_smallest_that_suffices(files, decoder, at_least, factor):
    box = Box(24, 32, 150, 200)
    for kind in ("4:2:0", "progressive", "EXIF 6", "CMYK", "grey"):
        image = EncodedImage.open(files[kind], "a.jpg")
        part = image.region(box, at_least=at_least)
        assert part.shape[:2] == (round(174 / factor) - 24 // factor, 200 // factor), kind


def test_both_decoders_agree_at_each_scale(files, monkeypatch):
    if decode.simplejpeg is None:
        pytest.skip("simplejpeg is not installed")
    for kind in ("4:2:0", "4:4:4", "4:2:2", "restarts", "EXIF 1"):
        image = EncodedImage.open(files[kind], "a.jpg")
        for box in BOXES:
            for at_least in (200, 100, 45, 20):
                with monkeypatch.context() as patch:
                    fast = image.region(box, at_least=at_least)
                    patch.setattr(decode, "simplejpeg", None)
                    slow = image.region(box, at_least=at_least)
                np.testing.assert_array_equal(fast, slow)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_reduced_scale_is_an_antialiased_picture(picture, decoder, factor):
    data = encoded(picture, "JPEG", quality=95, subsampling=0)
    side = 288 // factor
    part = EncodedImage.open(data, "a.jpg").region(Box(0, 64, 288, 288), at_least=side)
    whole = Image.fromarray(decode_image(data, "a.jpg"))
    crop = whole.crop((64, 0, 352, 288))
    averaged = np.asarray(crop.resize((side, side), Image.Resampling.BOX)).astype(int)
    picked = np.asarray(crop.resize((side, side), Image.Resampling.NEAREST)).astype(int)
    difference = np.abs(part - averaged).mean()
    assert difference < 3
    assert difference < 0.3 * np.abs(picked - averaged).mean()


def test_broken_files_are_named(picture):
    data = encoded(picture, "JPEG")
    with pytest.raises(DataError, match=r"a\.jpg: is cut off") as caught:
        EncodedImage.open(data[: len(data) // 2], "a.jpg").region(BOXES[0], at_least=224)
    assert caught.value.flaw is Flaw.TRUNCATED
    with pytest.raises(DataError, match=r"b\.jpg: is not an image"):
        EncodedImage.open(b"\xff\xd8nothing\xff\xd9", "b.jpg")
    with pytest.raises(DataError, match=r"c\.jpg: is not an image"):
        EncodedImage.open(b"", "c.jpg")


def test_a_damaged_head_is_an_error_with_each_decoder(picture, decoder):
    data = bytearray(encoded(picture, "JPEG"))
    tables = data.index(b"\xff\xc4")
    data[tables : tables + 2] = b"\xff\xfe"  # the Huffman tables become a comment
    image = EncodedImage.open(bytes(data), "a.jpg")
    assert image.height_at
    # libjpeg falls back to the standard's tables, which Pillow's default encoder does use.
    assert image.region(BOXES[1], at_least=224).shape == (100, 90, 3)
    start = data.index(b"\xff\xdb")
    del data[start + 4 : start + 30]
    with pytest.raises(DataError, match=r"a\.jpg: "):
        EncodedImage.open(bytes(data), "a.jpg").region(BOXES[1], at_least=224)


def test_what_follows_the_end_does_no_harm(picture):
    data = encoded(picture, "JPEG") + b"\0" * 7
    part = EncodedImage.open(data, "a.jpg").region(BOXES[1], at_least=10)
    np.testing.assert_array_equal(part, decode_image(data, "a.jpg")[11:111, 7:97])
