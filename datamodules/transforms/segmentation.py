"""The ADE20K recipe's transforms, by the rules of mmsegmentation.

The recipe (the ADE20K data configs of Swin-Transformer-Semantic-Segmentation, PVT and MPViT agree):
resize to (2048, 512) times 0.5 to 2.0, crop 512 with no class above 75 %, flip, photometric
distortion, pad to 512. Normalising happens on the device. Images are uint8 RGB (H, W, 3), masks
uint8 (H, W). The few transforms are coarse, since each costs albumentations some 20 us of overhead.
"""

from collections.abc import Sequence
from typing import Any

import albumentations as A
import cv2
import numpy as np
import numpy.typing as npt
from albumentations.core.type_definitions import Targets

from datamodules.transforms.adapter import Augmentation, Augmented
from datamodules.transforms.common_size import CommonSize
from datamodules.transforms.photometric import PhotoMetricDistortion
from gmf_platform.errors import UserError

__all__ = [
    "Pad",
    "RandomCrop",
    "RandomResize",
    "Resize",
    "eval_transform",
    "train_transform",
]

_IGNORE = 255  # the ignored class number of ADE20K in all reference recipes


class Resize(A.DualTransform):
    """Resize to fit into ``scale``, keeping the aspect ratio (mmcv's ``imrescale``).

    The factor is min(long edge of scale / long edge, short edge of scale / short edge), the new
    edges int(edge * factor + 0.5). Images by OpenCV's bilinear interpolation without antialiasing,
    masks by the nearest pixel.

    Args:
        scale: The two edges to fit into, in pixels, in either order.
    """

    _targets = (Targets.IMAGE, Targets.MASK)

    def __init__(self, scale: tuple[int, int] = (2048, 512)) -> None:
        super().__init__(p=1.0)
        _require(min(scale) > 0, f"data.scale must be positive, not {scale}")
        self.scale = scale

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        """Return ``new_size``, (width, height) in pixels."""
        return {"new_size": _fitted(params["shape"][:2], self.scale)}

    def apply(
        self, img: npt.NDArray[Any], *, new_size: tuple[int, int], **_: Any
    ) -> npt.NDArray[Any]:
        """Resize an image (H, W, 3)."""
        return cv2.resize(img, new_size, interpolation=cv2.INTER_LINEAR)

    def apply_to_mask(
        self, mask: npt.NDArray[Any], *, new_size: tuple[int, int], **_: Any
    ) -> npt.NDArray[Any]:
        """Resize a mask (H, W)."""
        return cv2.resize(mask, new_size, interpolation=cv2.INTER_NEAREST)


class RandomResize(Resize):
    """Resize to fit into ``scale`` times a uniform ratio (mmcv's ``RandomResize``, keep_ratio).

    Args:
        scale: The two edges to fit into at ratio 1, in pixels. Times the ratio they are truncated.
        ratio_range: The lowest and highest ratio.
    """

    def __init__(
        self,
        scale: tuple[int, int] = (2048, 512),
        ratio_range: tuple[float, float] = (0.5, 2.0),
    ) -> None:
        super().__init__(scale)
        _require(
            0 < ratio_range[0] <= ratio_range[1],
            f"data.ratio_range must be (low, high) with 0 < low <= high, not {ratio_range}.",
        )
        self.ratio_range = ratio_range

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        """Return ``ratio`` and ``new_size``, (width, height) in pixels."""
        ratio = self.py_random.uniform(*self.ratio_range)
        scale = int(self.scale[0] * ratio), int(self.scale[1] * ratio)
        return {"ratio": ratio, "new_size": _fitted(params["shape"][:2], scale)}


class RandomCrop(A.DualTransform):
    """Crop where no class fills too much of the crop (mmsegmentation's ``RandomCrop``).

    A crop is taken if it holds more than one class and the most frequent one has less than
    ``max_category_ratio`` of the pixels that are not ignored. If ``tries`` crops fail, one more is
    taken unseen. An edge shorter than the crop is kept whole.

    Args:
        size: Edge, or (height, width), of the crop in pixels.
        max_category_ratio: 1 takes the first crop.
        ignore_index: Class number that does not count.
        tries: Crops to look at.
    """

    _targets = (Targets.IMAGE, Targets.MASK)

    def __init__(
        self,
        size: int | tuple[int, int] = 512,
        max_category_ratio: float = 0.75,
        ignore_index: int = _IGNORE,
        tries: int = 10,
    ) -> None:
        super().__init__(p=1.0)
        _require(0 <= ignore_index <= 255, f"ignore_index must be 0..255, not {ignore_index}.")
        self.size = _height_width(size)
        self.max_category_ratio = max_category_ratio
        self.ignore_index = ignore_index
        self.tries = tries

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        """Return ``window``, the rows and columns of the crop."""
        mask = data.get("mask")
        window = self._draw(params["shape"])
        if mask is not None and self.max_category_ratio < 1:
            for _ in range(self.tries):
                if self._is_mixed(mask[window]):
                    break
                window = self._draw(params["shape"])
        return {"window": window}

    def apply(
        self, img: npt.NDArray[Any], *, window: tuple[slice, slice], **_: Any
    ) -> npt.NDArray[Any]:
        """Crop an image (H, W, 3) or a mask (H, W)."""
        return img[window]

    def apply_to_mask(
        self, mask: npt.NDArray[Any], *, window: tuple[slice, slice], **_: Any
    ) -> npt.NDArray[Any]:
        """Crop a mask (H, W)."""
        return mask[window]

    def _draw(self, shape: tuple[int, ...]) -> tuple[slice, slice]:
        height, width = self.size
        top = self.py_random.randint(0, max(shape[0] - height, 0))
        left = self.py_random.randint(0, max(shape[1] - width, 0))
        return slice(top, top + height), slice(left, left + width)

    def _is_mixed(self, mask: npt.NDArray[np.uint8]) -> bool:
        # A histogram by OpenCV takes half the time of numpy's bincount, a tenth of its unique.
        counts = cv2.calcHist([mask], [0], None, [256], [0, 256]).ravel().astype(np.int64)
        counts[self.ignore_index] = 0
        return bool(
            np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < self.max_category_ratio
        )


class Pad(A.DualTransform):
    """Pad on the right and at the bottom up to ``size``, images with 0, masks with the ignored class.

    Adds ``size``, the (height, width) before padding, to the result.

    Args:
        size: Least edge, or (height, width), in pixels.
        ignore_index: Class number of the padding.
    """

    _targets = (Targets.IMAGE, Targets.MASK)

    def __init__(self, size: int | tuple[int, int] = 512, ignore_index: int = _IGNORE) -> None:
        super().__init__(p=1.0)
        self.size = _height_width(size)
        self.ignore_index = ignore_index

    def apply_with_params(
        self, params: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Pad all targets, and tell the size before it."""
        size = params["shape"][:2]
        return super().apply_with_params(params, *args, **kwargs) | {"size": size}

    def apply(self, img: npt.NDArray[Any], **_: Any) -> npt.NDArray[Any]:
        """Pad an image (H, W, 3)."""
        return self._padded(img, 0)

    def apply_to_mask(self, mask: npt.NDArray[Any], **_: Any) -> npt.NDArray[Any]:
        """Pad a mask (H, W)."""
        return self._padded(mask, self.ignore_index)

    def _padded(self, array: npt.NDArray[Any], value: int) -> npt.NDArray[Any]:
        bottom = max(self.size[0] - array.shape[0], 0)
        right = max(self.size[1] - array.shape[1], 0)
        if not bottom and not right:
            return array
        return cv2.copyMakeBorder(array, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=value)


def train_transform(
    crop: int | tuple[int, int] = 512,
    scale: tuple[int, int] = (2048, 512),
    ratio_range: tuple[float, float] = (0.5, 2.0),
    max_category_ratio: float = 0.75,
    extra: Sequence[A.BasicTransform] = (),
) -> Augmentation:
    """Build the training transform of the ADE20K recipe (see the head of this module).

    Args:
        crop: Edge, or (height, width), of the result in pixels.
        scale: See :class:`RandomResize`.
        ratio_range: See :class:`RandomResize`.
        max_category_ratio: See :class:`RandomCrop`.
        extra: More transforms, applied before the padding. They must not enlarge the image, and
            should fill masks with 255.

    Returns:
        Image (crop, crop, 3) and mask (crop, crop), padded at the right and the bottom.

    Raises:
        UserError: A value is out of its range.
    """
    return Augmentation(
        [
            RandomResize(scale, ratio_range),
            RandomCrop(crop, max_category_ratio),
            A.HorizontalFlip(p=0.5),
            PhotoMetricDistortion(),
            *extra,
            Pad(crop),
        ]
    )


class _Scaled(Augmentation):
    """Resizes an image to ``scale``, and to each of its multiples for ``scaled``."""

    def __init__(self, scale: tuple[int, int], ratios: Sequence[float]) -> None:
        super().__init__([Resize(scale)])
        # Truncated, as mmsegmentation's MultiScaleFlipAug does it.
        scales = ((int(scale[0] * ratio), int(scale[1] * ratio)) for ratio in ratios)
        self.versions = [Augmentation([Resize(one)]) for one in scales]

    def __call__(self, *, image: npt.NDArray[np.uint8], **keys: Any) -> Augmented:
        result = super().__call__(image=image, **keys)
        result["scaled"] = [version(image=image, **keys) for version in self.versions]
        return result


class AtCommonSize(Augmentation):
    """Resizes an image to the size that it has in all tasks.

    Args:
        size: makes it.
    """

    def __init__(self, size: CommonSize) -> None:
        super().__init__([])
        self.common_size = size

    def __call__(self, *, image: npt.NDArray[np.uint8], **keys: Any) -> Augmented:
        """Resize one image; see Augmentation."""
        return super().__call__(image=self.common_size(image), **keys)


def eval_transform(
    scale: tuple[int, int] = (2048, 512), ratios: Sequence[float] | None = None
) -> Augmentation:
    """Build the evaluation transform: the image is resized, the mask must stay as it is on disk.

    Args:
        scale: See :class:`Resize`.
        ratios: For test-time augmentation: the result has ``scaled``, the image resized to each
            ratio times the scale.

    Returns:
        A transform to call with the image alone.

    Raises:
        UserError: The scale, or a ratio of it, is not positive.
    """
    return Augmentation([Resize(scale)]) if ratios is None else _Scaled(scale, ratios)


def _fitted(shape: tuple[int, int], scale: tuple[int, int]) -> tuple[int, int]:
    """Return the (width, height) of a picture (height, width) made to fit into scale."""
    height, width = shape
    factor = min(max(scale) / max(shape), min(scale) / min(shape))
    return max(int(width * factor + 0.5), 1), max(int(height * factor + 0.5), 1)


def _height_width(size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    _require(height > 0 and width > 0, f"data.crop_size must be positive, not {size}")
    return height, width


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)
