"""The one place that calls albumentations, and makes each call a pure function of its seed."""

import hashlib
import random
import struct
from collections.abc import Sequence
from typing import NotRequired, TypedDict

import albumentations as A
import numpy as np
import numpy.typing as npt

from gmf_platform.errors import UserError

__all__ = ["Augmentation", "Augmented", "generators"]


class Augmented(TypedDict):
    """What an :class:`Augmentation` returns."""

    image: npt.NDArray[np.uint8]
    """(H, W, 3), contiguous."""
    mask: NotRequired[npt.NDArray[np.uint8]]
    """(H, W), contiguous; absent if none was given."""
    size: tuple[int, int]
    """(height, width) without padding: what lies right of and below it is padding."""
    scaled: NotRequired[list["Augmented"]]
    """The same image at other scales, where the evaluation asks for them."""


class Augmentation:
    """A chain of albumentations transforms whose result depends on the seed of the call alone.

    albumentations 2.0.8 left to itself draws the same sequence in every loader worker and repeats
    it every epoch. Here each call sets one fresh pair of generators for the whole chain, so the
    number of workers, the rank and the point of resume do not matter. One pair for all, because
    ``Compose.set_random_seed`` would give every transform the same stream and so tie, for example,
    the flip to the scale.

    Args:
        transforms: The chain, in order. All randomness must come from the transforms' own
            ``random_generator`` and ``py_random``, as it does in all that albumentations ships.
    """

    def __init__(self, transforms: Sequence[A.BasicTransform | A.BaseCompose]) -> None:
        self.compose = A.Compose(list(transforms))

    def __call__(
        self,
        *,
        image: npt.NDArray[np.uint8],
        mask: npt.NDArray[np.uint8] | None = None,
        seed: tuple[int, ...],
    ) -> Augmented:
        """Transform one sample.

        Args:
            image: uint8 (H, W, 3).
            mask: uint8 (H, W), class numbers and the ignored number.
            seed: (run seed, epoch, sample index), or any other key of integers of 64 bits.

        Returns:
            The transformed image and mask, and the size without padding.

        Raises:
            UserError: The image is not 8-bit RGB, or the mask not 8-bit and of the image's size.
        """
        _check(image, mask)
        self.compose.set_random_state(*generators(seed))
        given = {"image": image} if mask is None else {"image": image, "mask": mask}
        result = self.compose(**given)
        size = result.get("size", result["image"].shape[:2])
        augmented = Augmented(image=result["image"], size=size)
        if mask is not None:
            augmented["mask"] = result["mask"]
        return augmented


def generators(seed: tuple[int, ...]) -> tuple[np.random.Generator, random.Random]:
    """Hash a key of 64-bit integers into two independent streams, in about 10 us."""
    key = hashlib.blake2b(struct.pack(f"<{len(seed)}q", *seed), digest_size=32).digest()
    first, second = int.from_bytes(key[:16], "little"), int.from_bytes(key[16:], "little")
    return np.random.Generator(np.random.PCG64(first)), random.Random(second)


def _check(image: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8] | None) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(
            f"Augmentation: the image must be uint8 (H, W, 3), not {image.dtype} {image.shape}."
        )
    if mask is not None and (mask.dtype != np.uint8 or mask.shape != image.shape[:2]):
        raise UserError(
            f"Augmentation: the mask must be uint8 {image.shape[:2]}, as the image is, "
            f"not {mask.dtype} {mask.shape}."
        )
