"""A look at somebody's images and masks: how many, how large, and which values the masks hold."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datamodules.histogram import evenly_spaced, value_histogram
from datamodules.images import DataError, Flaw, image_size, read_colours, read_mask
from datamodules.labels import MAX_CLASSES
from datamodules.layouts import files_at
from datamodules.pairs import Pairing, find_file_pairs

__all__ = ["Survey", "survey_pairs"]

_LOOKED_AT = 100


@dataclass(frozen=True)
class Survey:
    """What a look at images and masks shows.

    Attributes:
        num_images: images with a mask.
        mask_suffix: what mask names have behind their image's.
        looked_at: masks opened, evenly spaced over all.
        is_colour: values are colours, R * 65536 + G * 256 + B.
        histogram: share of each value in the pixels of those masks.
        sizes: height and width of their images.
    """

    num_images: int
    mask_suffix: str
    looked_at: int
    is_colour: bool
    histogram: dict[int, float]
    sizes: list[tuple[int, int]]


def survey_pairs(images: Path, masks: Path, *, mask_suffix: str | None = None) -> Survey:
    """Look at images and up to 100 of their masks.

    Args:
        images: folder or pattern.
        masks: likewise.
        mask_suffix: what mask names have behind their image's; None: found by looking.

    Raises:
        DataError: images without a mask, a broken file, or masks of too many values.
    """
    suffix = _suffix(images, masks) if mask_suffix is None else mask_suffix
    pairing: Pairing = find_file_pairs(images, masks, mask_suffix=suffix)
    pairs = pairing.whole()
    looked_at = evenly_spaced([mask for _, mask in pairs], _LOOKED_AT)
    is_colour, histogram = _histogram(looked_at)
    if len(histogram) > MAX_CLASSES + 1:
        what = "colours" if is_colour else "values"
        raise DataError(
            f"{looked_at[0]}: this mask and {len(looked_at) - 1} more hold {len(histogram)} "
            f"{what}: they seem to be photographs, instance numbers, or drawn with soft edges. "
            f"Masks of at most {MAX_CLASSES} classes can be learned."
        )
    image_of = {mask: image for image, mask in pairs}
    sizes = [image_size(image_of[mask]) for mask in looked_at]
    return Survey(len(pairs), suffix, len(looked_at), is_colour, histogram, sizes)


def _suffix(images: Path, masks: Path) -> str:
    """Nothing if an image and a mask have the same name, or else what the first pair differs by."""
    of_masks = files_at(masks)
    stems = {path.stem for path in files_at(images)}
    if images != masks and any(path.stem in stems for path in of_masks):
        return ""
    for mask in of_masks:
        starts = [s for s in stems if mask.stem.startswith(s) and s != mask.stem]
        if starts:
            return mask.stem.removeprefix(max(starts, key=len))
    return ""


def _histogram(masks: Sequence[Path]) -> tuple[bool, dict[int, float]]:
    """Whether the masks are colours, and the shares of their values."""
    try:
        return False, value_histogram(map(read_mask, masks))
    except DataError as error:
        if error.flaw is not Flaw.COLOUR:
            raise
    return True, value_histogram(map(read_colours, masks))
