"""Colour distortion by lookup tables, bit for bit mmsegmentation's."""

from typing import Any

import albumentations as A
import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["PhotoMetricDistortion"]

_IDENTITY = np.arange(256, dtype=np.uint8)


class PhotoMetricDistortion(A.ImageOnlyTransform):
    """Change brightness, contrast, saturation and hue (mmsegmentation's ``PhotoMetricDistortion``).

    In this order: brightness, contrast, saturation, hue; or with contrast last, which has
    probability 0.5. Each has probability 0.5. Each clips to 0..255 and truncates, saturation and
    hue in a conversion of their own to OpenCV's 8-bit HSV and back. All are functions of one byte
    and so are looked up in tables; tables in a row are joined, which changes no bit of the result.

    Args:
        brightness: Greatest change of value, in grey levels.
        contrast: Least and greatest factor of the value.
        saturation: Least and greatest factor of the HSV saturation.
        hue: The HSV hue changes by one of the integers -hue .. hue - 1, in units of 2 degrees.
    """

    def __init__(
        self,
        brightness: float = 32,
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: int = 18,
    ) -> None:
        super().__init__(p=1.0)
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue

    def get_params(self) -> dict[str, Any]:
        """Draw what to change; None leaves a property as it is."""
        draw = self.py_random

        def chosen() -> bool:
            return draw.random() < 0.5

        return {
            "brightness": draw.uniform(-self.brightness, self.brightness) if chosen() else None,
            "contrast": draw.uniform(*self.contrast) if chosen() else None,
            "contrast_last": chosen(),
            "saturation": draw.uniform(*self.saturation) if chosen() else None,
            "hue": draw.randrange(-self.hue, self.hue) if self.hue and chosen() else None,
        }

    def apply(
        self,
        img: npt.NDArray[Any],
        *,
        brightness: float | None,
        contrast: float | None,
        contrast_last: bool,
        saturation: float | None,
        hue: int | None,
        **_: Any,
    ) -> npt.NDArray[Any]:
        """Distort an image (H, W, 3) by what :meth:`get_params` drew."""
        table = _IDENTITY
        if brightness is not None:
            table = _linear(table, offset=brightness)
        if contrast is not None and not contrast_last:
            table = _linear(table, factor=contrast)
        if saturation is not None or hue is not None:
            img, table = _looked_up(img, table), _IDENTITY
        if saturation is not None:
            img = _in_hsv(img, 1, _linear(_IDENTITY, factor=saturation))
        if hue is not None:
            img = _in_hsv(img, 0, ((_IDENTITY.astype(int) + hue) % 180).astype(np.uint8))
        if contrast is not None and contrast_last:
            table = _linear(table, factor=contrast)
        return _looked_up(img, table)


def _linear(
    table: npt.NDArray[np.uint8], *, factor: float = 1.0, offset: float = 0.0
) -> npt.NDArray[np.uint8]:
    """Follow a table by value * factor + offset in float32, clipped and truncated."""
    values = table.astype(np.float32) * factor + offset
    return np.clip(values, 0, 255).astype(np.uint8)


def _looked_up(img: npt.NDArray[Any], table: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    return img if table is _IDENTITY else cv2.LUT(img, table)


def _in_hsv(img: npt.NDArray[Any], channel: int, table: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """Look up one channel of an RGB image's 8-bit HSV form (hue 0..179, the others 0..255)."""
    hsv = cv2.cvtColor(img, cv2.COLOR_RGB2HSV)
    cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, channel), table), hsv, channel)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB, dst=hsv)
