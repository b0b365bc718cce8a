"""Reading of image and mask files, with errors that name the file and what is wrong with it."""

import io
import os
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from gmf_platform.errors import UserError

__all__ = [
    "BEGINNINGS",
    "ENDINGS",
    "ColourMap",
    "DataError",
    "Flaw",
    "Image8",
    "ImageSource",
    "LabelMap",
    "broken",
    "check_image",
    "decode_image",
    "image_size",
    "name_of",
    "orientation_of",
    "read_bytes",
    "read_colours",
    "read_image",
    "read_mask",
    "read_source",
    "source_size",
]

Image8: TypeAlias = npt.NDArray[np.uint8]
"""An image (H, W, 3), RGB."""
ImageSource: TypeAlias = Path | Image8
"""An image file, or an image itself."""
LabelMap: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
"""A mask (H, W) of label numbers."""
ColourMap: TypeAlias = npt.NDArray[np.int32]
"""A mask (H, W) of colours, each R * 65536 + G * 256 + B."""

BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n")
"""The first bytes of a JPEG and of a PNG file."""
ENDINGS = (b"\xff\xd9", b"IEND\xaeB\x60\x82")
"""The last bytes of a whole file: JPEG's end-of-image marker, PNG's IEND chunk and checksum."""
_UINT16_MAX = 65535


class Flaw(StrEnum):
    """What can be wrong with a sample of a data set, in the words of `check-data`."""

    NO_PARTNER = "without partner"
    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    SIZE = "mask of another size than its image"
    LABEL = "labels outside the classes"
    COLOUR = "mask is a colour picture, not label numbers"
    ANNOTATION = "annotations that cannot be used"
    EMPTY_CLASS = "classes without images"
    CLASS = "images of no known class"
    BALANCE = "too little left to learn from"


class DataError(UserError):
    """A data file is missing, broken or not of the wanted kind. The message starts with its path.

    Attributes:
        flaw: the kind of it, by which `check-data` counts.
    """

    def __init__(self, message: str, *, flaw: Flaw = Flaw.UNREADABLE) -> None:
        super().__init__(message)
        self.flaw = flaw


def read_image(path: str | Path, *, upright: bool = True) -> Image8:
    """Read an image file as 8-bit RGB, turned upright as its EXIF orientation says.

    Greyscale is repeated over the channels, CMYK converted, alpha dropped, 16 bits reduced to 8.

    Args:
        path: A JPEG, PNG, WebP, BMP or TIFF file.
        upright: False leaves the pixels as they lie in the file.

    Returns:
        uint8 (H, W, 3), contiguous.

    Raises:
        DataError: The file is missing, empty, cut off, or no image.
    """
    return decode_image(read_bytes(path), path, upright=upright)


def decode_image(data: bytes, path: str | Path, *, upright: bool = True) -> Image8:
    """Decode what :func:`read_image` reads.

    Args:
        data: The bytes of an image file.
        path: What errors call it.
        upright: See :func:`read_image`.

    Returns:
        uint8 (H, W, 3), contiguous.

    Raises:
        DataError: The bytes are cut off, or no image.
    """
    # OpenCV 4.10 decodes a cut-off JPEG without a word and paints the missing rest grey. Pillow
    # refuses it, so a file whose end does not prove it whole goes through Pillow first.
    if not data.endswith(ENDINGS):
        picture = _load_strictly(path, data)
        if picture.format == "WEBP":  # OpenCV 4 ignores its orientation
            turned = ImageOps.exif_transpose(picture) if upright else picture
            return np.array(turned.convert("RGB"))
    flags = cv2.IMREAD_COLOR | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise DataError(f"{path}: cannot be decoded: {error.err}") from error
    if image is None:
        _load_strictly(path, data)  # says better than OpenCV what is wrong, if it sees it too
        raise DataError(f"{path}: cannot be decoded: OpenCV finds it damaged. Replace the file.")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image).astype(np.uint8, copy=False)


def read_source(source: ImageSource) -> Image8:
    """The image itself, read by :func:`read_image` if it is a file.

    Raises:
        DataError: The file is missing, empty, cut off, or no image.
    """
    return read_image(source) if isinstance(source, Path) else source


def source_size(source: ImageSource) -> tuple[int, int]:
    """Height and width in pixels; of a file from its header alone.

    Raises:
        DataError: The file is missing, empty or no image.
    """
    return image_size(source) if isinstance(source, Path) else source.shape[:2]


def name_of(source: ImageSource) -> str:
    """A file's path; empty for an image in memory."""
    return str(source) if isinstance(source, Path) else ""


def read_mask(path: str | Path) -> LabelMap:
    """Read a mask file as label numbers. A palette picture gives its indices, not its colours.

    Args:
        path: A PNG (or other lossless) file with one channel of at most 16 bits, or a palette. Of
            one bit per pixel, the labels are 0 and 1.

    Returns:
        uint8 or uint16 (H, W).

    Raises:
        DataError: The file is missing, empty, cut off, no image, or holds no label numbers.
    """
    image = _load_lossless(path)
    match image.mode:
        case "L" | "P" | "1":
            return np.array(image, dtype=np.uint8)
        case "I;16" | "I;16L" | "I;16B":
            return np.array(image).astype(np.uint16)
        case "I":
            return _narrowed(path, np.array(image))
        case mode:
            raise DataError(
                f"{path}: is a colour picture, not label numbers (mode {mode}).\n"
                "Convert it to one channel that holds the class number of each pixel, or read it "
                "with datamodules.SegmentationFiles, whose data.palette names the colours.",
                flaw=Flaw.COLOUR,
            )


def read_colours(path: str | Path) -> ColourMap:
    """Read a mask file as colours. Of a palette picture they are its palette's, grey is R = G = B.

    Args:
        path: A PNG (or other lossless) file of at most 8 bits per channel; alpha is dropped.

    Returns:
        int32 (H, W), each R * 65536 + G * 256 + B.

    Raises:
        DataError: The file is missing, empty, cut off, no image, or of more than 8 bits.
    """
    image = _load_lossless(path)
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        raise DataError(
            f"{path}: is a picture of mode {image.mode}; masks of colours have 8 bits per channel. "
            "Convert it, or leave out data.palette if it holds label numbers."
        )
    red, green, blue = np.moveaxis(np.array(image.convert("RGB")).astype(np.int32), -1, 0)
    return (red << 16) | (green << 8) | blue


def image_size(path: str | Path) -> tuple[int, int]:
    """Read the size that :func:`read_image` would give, from the header alone.

    Args:
        path: An image file.

    Returns:
        (height, width) in pixels, after the EXIF orientation.

    Raises:
        DataError: The file is missing, empty or no image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = orientation_of(image) >= 5  # 5 to 8 swap the axes
    except Exception as error:
        raise broken(path, error, read_bytes(path)[:32]) from error
    return (width, height) if turned else (height, width)


def check_image(path: str | Path) -> None:
    """Check that a file is an image, and if JPEG or PNG a whole one, without decoding it.

    One whose last bytes are not those of a whole file is decoded to see.

    Raises:
        DataError: The file is missing, empty, cut off or no image.
    """
    image_size(path)
    with Path(path).open("rb") as file:
        begin = file.read(8)
        file.seek(max(0, file.seek(0, os.SEEK_END) - 8))
        end = file.read()
    if begin.startswith(BEGINNINGS) and not end.endswith(ENDINGS):
        read_image(path)


def read_bytes(path: str | Path) -> bytes:
    """Read a whole file.

    Raises:
        DataError: The file is missing, empty or cannot be read.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
    if not data:
        raise DataError(f"{path}: is empty (0 bytes). Fetch or unpack it again.")
    return data


def _load_strictly(path: str | Path, data: bytes) -> Image.Image:
    """Decode with Pillow, which refuses what is cut off."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    # Pillow's plugins raise many kinds (OSError, SyntaxError, struct.error, ...) on broken files.
    except Exception as error:
        raise broken(path, error, data[:32]) from error
    return image


def _load_lossless(path: str | Path) -> Image.Image:
    image = _load_strictly(path, read_bytes(path))
    if image.format == "JPEG":
        raise DataError(
            f"{path}: is a JPEG, whose compression alters label numbers. Use PNG masks."
        )
    return image


def broken(path: str | Path, error: Exception, head: bytes) -> DataError:
    """Say in a line what Pillow's error means for the file."""
    text = str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        return DataError(f"{path}: is not an image: it starts with {head!r}.")
    if "truncated" in text.lower():
        said = f"{path}: is cut off ({text}). Fetch or unpack it again."
        return DataError(said, flaw=Flaw.TRUNCATED)
    return DataError(f"{path}: cannot be decoded: {text}. Replace the file.")


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8, as OpenCV sees it.

    ``Image.getexif`` would decode a whole PNG in search of it, and also believe XMP, which OpenCV
    does not read.
    """
    exif = Image.Exif()
    exif.load(image.info.get("exif", b""))
    value = exif.get(ExifTags.Base.Orientation, 1)
    return value if isinstance(value, int) else 1


def _narrowed(path: str | Path, labels: npt.NDArray[np.int32]) -> LabelMap:
    if labels.min(initial=0) < 0 or labels.max(initial=0) > _UINT16_MAX:
        raise DataError(f"{path}: holds label numbers outside 0..{_UINT16_MAX}.")
    return labels.astype(np.uint16)
