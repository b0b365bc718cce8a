"""RandAugment as timm has it, on a generator of one's own.

Operations, magnitudes and chances are those of ``rand_augment_transform`` in
timm/data/auto_augment.py, and so are the pixels: both call Pillow. timm itself draws from the
global generators of Python and numpy, so a sample would depend on those loaded before it.

Cubuk et al., RandAugment, arXiv 1909.13719.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from datamodules.images import Image8
from gmf_platform.errors import UserError

__all__ = ["OPERATIONS", "Drawn", "Operation", "RandAugment"]

Operation = Literal[
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
]
OPERATIONS: Sequence[Operation] = get_args(Operation)

_STRONGEST = 10.0  # magnitudes are counted in tenths of an operation's strongest form
_UNIFORM_ABOVE = 100.0  # a larger mstd means: uniform between 0 and the magnitude


class Drawn(NamedTuple):
    """An operation and what it is done with: degrees, a threshold, a factor, a share of the side."""

    operation: Operation
    argument: float


@dataclass(frozen=True)
class RandAugment:
    """Some random operations, each of them or not.

    Attributes:
        magnitude: mean of an operation's strength; 10 is its strongest form.
        std: standard deviation of the strength.
        most: strength never exceeds this.
        layers: how many operations are drawn, with repetition.
        probability: chance that one drawn is done.
        increasing: operations change the image more with rising strength; if not, strength of
            colour, contrast, brightness and sharpness goes from 0.1 to 1.9 times the original,
            and that of posterising and solarising falls.
        resample: of rotation, shear and translation.
        fill: the colour of what these bring in from outside, RGB.
    """

    magnitude: float = _STRONGEST
    std: float = 0.0
    most: float = _STRONGEST
    layers: int = 2
    probability: float = 0.5
    increasing: bool = False
    resample: Image.Resampling = Image.Resampling.BICUBIC
    fill: tuple[int, int, int] = (128, 128, 128)

    @classmethod
    def parse(cls, text: str, **settings: Any) -> "RandAugment":
        """Read timm's notation, such as ``rand-m9-mstd0.5-inc1``.

        Args:
            text: ``rand`` and then, in any order, m (magnitude), mstd (std), mmax (most),
                n (layers), p (probability), inc (increasing: 0 or 1).
            settings: further attributes.

        Raises:
            UserError: it has another section.
        """
        first, *sections = text.split("-")
        values: dict[str, Any] = {}
        for section in sections:
            match = re.fullmatch(r"(m|mstd|mmax|n|p|inc)(\d+\.?\d*)", section)
            if match is None:
                raise _not_understood(text)
            key, number = match[1], float(match[2])
            values[_ATTRIBUTES[key]] = int(number) if key in ("n", "inc") else number
        if first != "rand":
            raise _not_understood(text)
        return cls(**values, **settings)

    def __call__(self, image: Image8, *, draw: random.Random) -> Image8:
        """Change an image uint8 (H, W, 3) at random."""
        drawn = self.drawn(draw)
        if not drawn:
            return image
        picture = Image.fromarray(image)
        for operation, argument in drawn:
            picture = self.applied(picture, operation, argument)
        return np.array(picture)

    def drawn(self, draw: random.Random) -> list[Drawn]:
        """What is done to an image, in order."""
        chosen = draw.choices(OPERATIONS, k=self.layers)
        # Not "< probability": in timm's order of draws, so that tests can follow it.
        return [
            Drawn(operation, self.argument(operation, self._strength(draw), draw))
            for operation in chosen
            if not draw.random() > self.probability
        ]

    def _strength(self, draw: random.Random) -> float:
        strength = self.magnitude
        if self.std > _UNIFORM_ABOVE:
            strength = draw.uniform(0, strength)
        elif self.std > 0:
            strength = draw.gauss(strength, self.std)
        return max(0.0, min(strength, self.most))

    def argument(self, operation: Operation, strength: float, draw: random.Random) -> float:
        """What an operation of this strength, 0 to 10, is done with; the sign is drawn."""
        level = strength / _STRONGEST

        def either_way(value: float) -> float:
            return -value if draw.random() > 0.5 else value

        match operation:
            case "AutoContrast" | "Equalize" | "Invert":
                return 0.0
            case "Rotate":
                return either_way(level * 30)
            case "ShearX" | "ShearY":
                return either_way(level * 0.3)
            case "TranslateX" | "TranslateY":
                return either_way(level * 0.45)
            case "Posterize":
                bits = int(level * 4)
                return 4 - bits if self.increasing else bits
            case "Solarize":
                threshold = min(256, int(level * 256))
                return 256 - threshold if self.increasing else threshold
            case "SolarizeAdd":
                return min(128, int(level * 110))
            case "Color" | "Contrast" | "Brightness" | "Sharpness":
                if self.increasing:
                    return max(0.1, 1 + either_way(level * 0.9))
                return level * 1.8 + 0.1

    def applied(self, image: Image.Image, operation: Operation, argument: float) -> Image.Image:
        """Do one operation to an RGB image."""
        match operation:
            case "AutoContrast":
                return ImageOps.autocontrast(image)
            case "Equalize":
                return ImageOps.equalize(image)
            case "Invert":
                return ImageOps.invert(image)
            case "Posterize":
                # Pillow 13 refuses 0 bits, a black image, which strength 10 asks for.
                kept = 256 - (1 << 8 - int(argument))
                return image.point([value & kept for value in range(256)] * 3)
            case "Solarize":
                return ImageOps.solarize(image, int(argument))
            case "SolarizeAdd":
                added = [value + int(argument) * (value < 128) for value in range(256)]
                return image.point([min(255, value) for value in added] * 3)
            case "Color" | "Contrast" | "Brightness" | "Sharpness":
                return getattr(ImageEnhance, operation)(image).enhance(argument)
            case _:
                return self._moved(image, operation, argument)

    def _moved(self, image: Image.Image, operation: Operation, argument: float) -> Image.Image:
        """Rotate, or transform by x' = a x + b y + c, y' = d x + e y + f."""
        match operation:
            case "ShearX":
                matrix = (1.0, argument, 0.0, 0.0, 1.0, 0.0)
            case "ShearY":
                matrix = (1.0, 0.0, 0.0, argument, 1.0, 0.0)
            case "TranslateX":
                matrix = (1.0, 0.0, argument * image.width, 0.0, 1.0, 0.0)
            case "TranslateY":
                matrix = (1.0, 0.0, 0.0, 0.0, 1.0, argument * image.height)
            case _:
                return image.rotate(argument, resample=self.resample, fillcolor=self.fill)
        return image.transform(
            image.size,
            Image.Transform.AFFINE,
            matrix,
            resample=self.resample,
            fillcolor=self.fill,
        )


_ATTRIBUTES = {
    "m": "magnitude",
    "mstd": "std",
    "mmax": "most",
    "n": "layers",
    "p": "probability",
    "inc": "increasing",
}


def _not_understood(text: str) -> UserError:
    return UserError(
        f"data.rand_augment: {text!r} is not understood: it is 'rand' and then, joined by '-', any "
        "of m9 (magnitude), mstd0.5 (its deviation), mmax10 (its bound), n2 (operations an "
        "image), p0.5 (chance of each), inc1 (stronger with rising magnitude); null for none"
    )
