"""A region of an encoded image, decoded as fast as can be: at reduced scale, and not below it.

A JPEG is scaled to a half, a quarter or an eighth in its frequency domain, which skips most of the
inverse transform and is itself antialiased. Only the rows down to the region's lower edge are
decoded, by telling the decoder that the picture ends there: each row of blocks depends on those
above alone. Without reduction the pixels are those of `read_image`, bit for bit.
"""

import io
import struct
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from datamodules.images import ENDINGS, Image8, broken, decode_image, orientation_of

__all__ = ["Box", "EncodedImage"]

# Both are libjpeg-turbo and give the same pixels, but OpenCV prints a warning for each picture that
# is said to end early, so without simplejpeg all rows are decoded.
simplejpeg: Any = import_module("simplejpeg") if find_spec("simplejpeg") else None

_REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
# Chroma is interpolated from the row of blocks below: with two more of them (of 16 rows) behind
# the region, its pixels are those of the whole picture.
_ROWS_BELOW = 32
_SEQUENTIAL = (0xC0, 0xC1)  # SOF0 and SOF1: Huffman-coded, all of a row of blocks in one place
_START_OF_SCAN = 0xDA


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def divided(self, factor: int) -> "Box":
        """The nearest part of the image at 1 / factor of its scale."""
        if factor == 1:
            return self
        edges = (self.top, self.left, self.top + self.height, self.left + self.width)
        top, left, bottom, right = (round(edge / factor) for edge in edges)
        return Box(top, left, bottom - top, right - left)


@dataclass(frozen=True)
class EncodedImage:
    """An image of which only the header is read.

    Attributes:
        data: the bytes of an image file.
        name: what errors call it.
        size: height and width in pixels, upright as the EXIF orientation says.
        is_jpeg: a whole JPEG, which can be decoded at reduced scale.
        height_at: where the height stands in a sequential JPEG of three channels that is stored
            upright, so that all libjpegs decode it alike; 0 if it is no such file.
    """

    data: bytes
    name: str
    size: tuple[int, int]
    is_jpeg: bool
    height_at: int

    @classmethod
    def open(cls, data: bytes, name: str | Path) -> "EncodedImage":
        """Read the header.

        Raises:
            DataError: the bytes are no image.
        """
        is_whole = data.endswith(ENDINGS)
        height_at = _find_height(data) if is_whole else 0
        if height_at and b"Exif" not in data[:height_at]:
            height, width = struct.unpack_from(">HH", data, height_at)
            return cls(data, str(name), (height, width), True, height_at)
        try:
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
                orientation = orientation_of(image)
                is_jpeg = is_whole and image.format == "JPEG"
        except Exception as error:
            raise broken(name, error, data[:32]) from error
        if orientation >= 5:  # 5 to 8 swap the axes
            width, height = height, width
        height_at = height_at if orientation == 1 else 0
        return cls(data, str(name), (height, width), is_jpeg, height_at)

    def region(self, box: Box, *, at_least: int) -> Image8:
        """Decode a part of the image, at the smallest scale whose edges suffice.

        Args:
            box: the part, in pixels of the full scale.
            at_least: both edges of the result have at least so many pixels, unless the box
                itself has fewer.

        Returns:
            uint8 (h, w, 3), contiguous: the box at 1/1, 1/2, 1/4 or 1/8 of its scale, its edges
            rounded to that scale's pixels.

        Raises:
            DataError: the file is cut off or damaged.
        """
        factor = 1
        while self.is_jpeg and factor < 8 and min(box.divided(2 * factor)[2:]) >= at_least:
            factor *= 2
        image = self._decoded(factor, bottom=box.top + box.height) if self.is_jpeg else None
        if image is None:  # no JPEG, or a damaged one: then this says what is wrong with it
            return _cut(decode_image(self.data, self.name), box)
        return _cut(image, box.divided(factor))

    def _decoded(self, factor: int, *, bottom: int) -> Image8 | None:
        """The JPEG at 1 / factor of its scale; what is below ``bottom`` may be missing."""
        if simplejpeg is not None and self.height_at:
            data, height = self._shortened(bottom + _ROWS_BELOW)
            height, width = -(-height // factor), -(-self.size[1] // factor)
            with suppress(ValueError):
                return simplejpeg.decode_jpeg(
                    data, "RGB", min_height=height, min_width=width, strict=False
                )
        with suppress(cv2.error):
            image = cv2.imdecode(np.frombuffer(self.data, np.uint8), _REDUCED[factor])
            return None if image is None else _rgb(image)
        return None

    def _shortened(self, bottom: int) -> tuple[bytes | bytearray, int]:
        """The JPEG, saying that it ends at a row, and its height."""
        if bottom >= self.size[0]:
            return self.data, self.size[0]
        data = bytearray(self.data)
        struct.pack_into(">H", data, self.height_at, bottom)
        return data, bottom


def _find_height(data: bytes) -> int:
    """Where the height stands in a sequential JPEG of 8 bits and three channels; 0 in others."""
    place = 2 if data.startswith(b"\xff\xd8") else len(data)
    while data.startswith(b"\xff", place) and place + 10 <= len(data):
        marker = data[place + 1]
        if marker in _SEQUENTIAL:
            bits, height, channels = data[place + 4], data[place + 5 : place + 7], data[place + 9]
            return place + 5 if bits == 8 and any(height) and channels == 3 else 0
        if marker == _START_OF_SCAN:
            break
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return 0


def _rgb(image: npt.NDArray[Any]) -> Image8:
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image).astype(np.uint8, copy=False)


def _cut(image: Image8, box: Box) -> Image8:
    return np.ascontiguousarray(
        image[box.top : box.top + box.height, box.left : box.left + box.width]
    )
