"""Scenes: one to four textured shapes on two textured grounds, with the truth about each pixel."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from datamodules.sample_data.shapes import FloatArray, Shape, signed_distance
from datamodules.sample_data.textures import (
    Ground,
    ground_texture,
    noise,
    random_colour,
    shape_mix,
)

__all__ = ["GROUNDS", "SHAPES", "Scene", "SceneObject", "Split", "draw_scene", "scenes"]

Split = Literal["train", "val"]

GROUNDS: Final[tuple[Ground, ...]] = get_args(Ground)
SHAPES: Final[tuple[Shape, ...]] = get_args(Shape)

# Every 12th scene holds a crowd and every 16th no object, so that their number is sure. The two
# never meet: they differ modulo 4.
_CROWD_PERIOD: Final = 12
_CROWD_PHASE: Final = 5
_EMPTY_PERIOD: Final = 16
_EMPTY_PHASE: Final = 11

_MAIN_SIDE: Final = (0.31, 0.42)  # root of the object's area over the side of the picture
_OTHER_SIDE: Final = (0.21, 0.29)  # below the main one, so that the main object is the largest
_CROWD_SIDE: Final = (0.06, 0.08)
_LEAST_VISIBLE: Final = 0.55  # share of an object that neither another one nor the border hides
_TRIES: Final = 20
_LEAST_CONTRAST: Final = 70  # of the two colours of an object, in grey levels
_RIM: Final = 0.035  # width of the dark rim over the root of the object's area


@dataclass(frozen=True, slots=True)
class SceneObject:
    """What is visible of one object, or of one crowd.

    Attributes:
        shape: Its class.
        mask: Visible pixels, bool (size, size), never empty.
        crowd: Whether this is a group of objects too small to be told apart.
    """

    shape: Shape
    mask: NDArray[np.bool_]
    crowd: bool


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture and what it shows.

    Attributes:
        index: Number of the scene in its split, from 0.
        image: RGB uint8 (size, size, 3).
        labels: uint8 (size, size): 0 other, 1..3 the ``GROUNDS``, 4..8 the ``SHAPES``; crowds are 0.
        objects: The objects and crowds; their masks are disjoint. Single objects stand from front to
            back, the largest first.
    """

    index: int
    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    objects: tuple[SceneObject, ...]

    @property
    def main_shape(self) -> Shape | None:
        """Class of the largest object that is no crowd; None if there is none."""
        single = [thing for thing in self.objects if not thing.crowd]
        return max(single, key=lambda thing: int(thing.mask.sum())).shape if single else None


@dataclass(frozen=True, slots=True)
class _Piece:
    """One shape on the canvas: visible pixels, coverage 0..1 (size, size) and paint (.., 3)."""

    mask: NDArray[np.bool_]
    coverage: FloatArray
    paint: FloatArray


def scenes(*, seed: int, split: Split, size: int) -> Iterator[Scene]:
    """Draw the scenes of a split, without end; see ``draw_scene``."""
    for index in count():
        yield draw_scene(index, seed=seed, split=split, size=size)


def draw_scene(index: int, *, seed: int, split: Split, size: int) -> Scene:
    """Draw one scene: the same arguments always give the same pixels.

    Args:
        index: Number of the scene in its split; its main object is of class ``index % 5``.
        seed: Seed of the whole sample, at least 0.
        split: Part of the sample.
        size: Side in pixels.

    Returns:
        The scene.
    """
    rng = np.random.default_rng([seed, ("train", "val").index(split), index, size])
    image, labels = _draw_grounds(rng, size)
    free = np.ones((size, size), bool)
    objects: list[SceneObject] = []
    pieces: list[_Piece] = []
    for shape, side in _cast(rng, index):
        piece = _place(rng, shape, free, side=side * size, near=(0.5, 0.5), reach=0.3)
        if piece is not None:
            free &= ~piece.mask
            pieces.append(piece)
            objects.append(SceneObject(shape, piece.mask, crowd=False))
            labels[piece.mask] = 1 + len(GROUNDS) + SHAPES.index(shape)
    if index % _CROWD_PERIOD == _CROWD_PHASE:
        crowd, members = _draw_crowd(rng, free)
        pieces.extend(members)
        if members:
            objects.append(crowd)
            labels[crowd.mask] = 0
    for piece in reversed(pieces):
        image += piece.coverage[..., None] * (piece.paint - image)
    return Scene(index, _photograph(rng, image), labels, tuple(objects))


def _cast(rng: np.random.Generator, index: int) -> Iterator[tuple[Shape, float]]:
    """Choose the objects of a scene, the main one first: class and side over the picture's."""
    if index % _EMPTY_PERIOD == _EMPTY_PHASE:
        return
    yield SHAPES[index % len(SHAPES)], rng.uniform(*_MAIN_SIDE)
    for _ in range(rng.integers(0, 4)):
        yield SHAPES[rng.integers(len(SHAPES))], rng.uniform(*_OTHER_SIDE)


def _draw_grounds(rng: np.random.Generator, size: int) -> tuple[FloatArray, NDArray[np.uint8]]:
    """Draw two grounds that meet in a winding border: RGB (size, size, 3) and labels."""
    first, second = rng.permutation(len(GROUNDS))[:2]
    y, x = _grid(size)
    angle = rng.uniform(0, 2 * np.pi)
    across = np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5)
    border = across + 0.05 * noise(rng, size, rows=4, columns=4) - rng.uniform(-0.15, 0.15)
    share = np.clip(0.5 - border * size, 0, 1)[..., None]
    textures = [ground_texture(rng, GROUNDS[number], size) for number in (first, second)]
    image = share * textures[0] + (1 - share) * textures[1]
    labels = np.where(border < 0, first + 1, second + 1)
    return image.astype(np.float32), labels.astype(np.uint8)


def _place(
    rng: np.random.Generator,
    shape: Shape,
    free: NDArray[np.bool_],
    *,
    side: float,
    near: tuple[float, float],
    reach: float,
) -> _Piece | None:
    """Put a shape of area ``side`` squared behind what is there; None where there is no room.

    ``near`` is a point (x, y) and ``reach`` the largest distance to it along each axis, both over
    the side of the picture.
    """
    size = len(free)
    y, x = _grid(size)
    for _ in range(_TRIES):
        left, top = (middle + rng.uniform(-reach, reach) for middle in near)
        angle = rng.uniform(0, 2 * np.pi)
        right, down = (x - left) * (size / side), (y - top) * (size / side)
        u = np.cos(angle) * right + np.sin(angle) * down
        v = np.cos(angle) * down - np.sin(angle) * right
        distance = signed_distance(shape, u, v)
        mask = (distance < 0) & free
        if mask.sum() >= _LEAST_VISIBLE * side**2:
            coverage = np.clip(0.5 - distance * side, 0, 1)
            return _Piece(mask, coverage, _paint(rng, shape, u, v, distance))
    return None


def _draw_crowd(
    rng: np.random.Generator, free: NDArray[np.bool_]
) -> tuple[SceneObject, list[_Piece]]:
    """Draw a heap of small objects of one class on what is free."""
    size = len(free)
    shape = SHAPES[rng.integers(len(SHAPES))]
    margin = size // 6  # the heap stays in the picture
    rows, columns = np.nonzero(free[margin:-margin, margin:-margin])
    seat = rng.integers(len(rows))
    near = (float(columns[seat] + margin) / size, float(rows[seat] + margin) / size)
    members: list[_Piece] = []
    room = free.copy()
    for _ in range(12):
        side = max(3.0, rng.uniform(*_CROWD_SIDE) * size)
        member = _place(rng, shape, room, side=side, near=near, reach=0.16)
        if member is not None:
            room &= ~member.mask
            members.append(member)
    return SceneObject(shape, free & ~room, crowd=True), members


def _paint(
    rng: np.random.Generator, shape: Shape, u: FloatArray, v: FloatArray, distance: FloatArray
) -> FloatArray:
    """Paint an object in two colours of clearly different brightness, with a dark rim."""
    first, second = random_colour(rng), random_colour(rng)
    gap = float(first.mean() - second.mean())
    if abs(gap) < _LEAST_CONTRAST:
        darker = second if gap > 0 else first
        darker *= 0.5
    share = shape_mix(rng, shape, u, v)[..., None]
    rim = np.clip((distance + _RIM) / _RIM + 0.5, 0, 1)[..., None]
    return np.asarray((first + share * (second - first)) * (1 - 0.65 * rim), np.float32)


def _photograph(rng: np.random.Generator, image: FloatArray) -> NDArray[np.uint8]:
    """Add a mild gradient of light and the noise of a sensor; RGB uint8."""
    y, x = _grid(len(image))
    slope = rng.uniform(-0.2, 0.2, 2)
    light = 1 + slope[0] * (x - 0.5) + slope[1] * (y - 0.5)
    grain = 3 * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(image * light[..., None] + grain, 0, 255).round().astype(np.uint8)


def _grid(size: int) -> tuple[FloatArray, FloatArray]:
    """Centres of the pixels, as y (size, 1) and x (1, size) in 0..1."""
    centres = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    return centres[:, None], centres[None, :]
