"""Which mask belongs to which image."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from datamodules.images import DataError, Flaw
from datamodules.layouts import files_at

__all__ = [
    "IMAGE_SUFFIXES",
    "Pairing",
    "find_file_pairs",
    "pair_folders",
    "read_pair_list",
]

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


@dataclass(frozen=True)
class Pairing:
    """Images and their masks.

    Attributes:
        pairs: image and mask, in the order of the images' paths.
        images_alone: images without a mask, each with the name that its mask would have.
        masks_alone: masks without an image.
        images: where the images were looked for, in words.
        masks: where the masks were looked for, in words.
    """

    pairs: list[tuple[Path, Path]]
    images_alone: list[tuple[Path, str]] = field(default_factory=list)
    masks_alone: list[Path] = field(default_factory=list)
    images: str = ""
    masks: str = ""

    def whole(self) -> list[tuple[Path, Path]]:
        """The pairs, if no image lacks its mask. Masks without an image do no harm.

        Raises:
            DataError: images without a mask, naming the first; or no images at all.
        """
        if self.images_alone:
            first, wanted = self.images_alone[0]
            count = len(self.images_alone)
            raise DataError(
                f"{count} of {count + len(self.pairs)} images under {self.images} have no mask "
                f"under {self.masks}: the first is {first.name}, whose mask would be {wanted}",
                flaw=Flaw.NO_PARTNER,
            )
        if not self.pairs:
            raise DataError(f"no .jpg or .png images under {self.images} (nor .tif, .webp, .bmp)")
        return self.pairs

    def problems(self) -> list[DataError]:
        """All that has no partner, in both directions."""
        said = [f"{path}: has no mask {wanted}" for path, wanted in self.images_alone]
        said += [f"{path}: no image has this mask" for path in self.masks_alone]
        return [DataError(line, flaw=Flaw.NO_PARTNER) for line in said]


def _by_key(paths: Iterable[Path], base: Path | None = None) -> dict[str, Path]:
    """Pictures by what pairs them: the path below ``base`` without suffix, or else the stem.

    Raises:
        DataError: two pictures of the same key, since nobody knows which is meant.
    """
    found: dict[str, Path] = {}
    for path in sorted(paths):
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            continue
        key = path.stem if base is None else path.relative_to(base).with_suffix("").as_posix()
        if key in found:
            raise DataError(
                f"{path}: has the same name as {found[key]}: remove one of them, or give a list "
                "of pairs (data.pairs)"
            )
        found[key] = path
    return found


def _pair_up(
    images: Mapping[str, Path],
    masks: Mapping[str, Path],
    *,
    mask_suffix: str = "",
    where: tuple[str, str],
) -> Pairing:
    pairs, alone, unused = [], [], dict(masks)
    for key, image in images.items():
        wanted = key + mask_suffix
        if wanted in masks:
            pairs.append((image, masks[wanted]))
            unused.pop(wanted, None)
        else:
            alone.append((image, f"{wanted}.png"))
    return Pairing(pairs, alone, list(unused.values()), *where)


def pair_folders(images: Path, masks: Path) -> Pairing:
    """Image and ``.png`` mask files of equal stem."""
    return _pair_up(
        _by_key(images.iterdir()),
        _by_key(path for path in masks.iterdir() if path.suffix.lower() == ".png"),
        where=(str(images), str(masks)),
    )


def find_file_pairs(images: Path, masks: Path, *, mask_suffix: str = "") -> Pairing:
    """Pair the pictures in two folders with their sub-folders, or of two patterns.

    Args:
        images: folder or pattern.
        masks: likewise, and may be the same folder where there is a suffix.
        mask_suffix: what a mask's stem has behind its image's.

    Raises:
        DataError: two files that would pair with the same one.
    """
    # Sub-folders tell files of equal stem apart, but only if both sides have the same ones.
    bases = (images, masks) if images.is_dir() and masks.is_dir() else (None, None)
    of_masks = [path for path in files_at(masks) if path.stem.endswith(mask_suffix)]
    of_images = set(files_at(images)) - (set(of_masks) if mask_suffix else set())
    return _pair_up(
        _by_key(of_images, bases[0]),
        _by_key(of_masks, bases[1]),
        mask_suffix=mask_suffix,
        where=(str(images), str(masks)),
    )


def read_pair_list(path: Path, root: Path) -> Pairing:
    """Read a text file of lines IMAGE<tab>MASK, relative to a folder.

    Raises:
        DataError: a line that is no pair, or an image that is not there.
    """
    pairs = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        image, _, mask = (part.strip() for part in line.partition("\t"))
        if not (image and mask):
            raise DataError(f"{path}:{number}: a line is IMAGE<tab>MASK, not {line!r}")
        if not (root / image).is_file():
            raise DataError(f"{path}:{number}: no file {root / image}", flaw=Flaw.NO_PARTNER)
        pairs.append((root / image, root / mask))
    found = [pair for pair in pairs if pair[1].is_file()]
    alone = [(image, str(mask)) for image, mask in pairs if not mask.is_file()]
    return Pairing(found, alone, images=str(path), masks=str(path))
