"""Textures of grounds and objects: what tells the classes apart, since their colours do not."""

import colorsys
from typing import Final, Literal

import cv2
import numpy as np

from datamodules.sample_data.shapes import FloatArray, Shape

__all__ = ["Ground", "ground_texture", "noise", "random_colour", "shape_mix"]

Ground = Literal["grass", "water", "sand"]

# Hue in turns. The spread of 0.2 turns makes the three overlap: a green lake is as good as a blue one.
_GROUND_HUE: Final[dict[Ground, float]] = {"grass": 0.28, "water": 0.52, "sand": 0.12}
_GROUND_HUE_SPREAD: Final = 0.2


def random_colour(rng: np.random.Generator, *, hue: float | None = None) -> FloatArray:
    """Draw a colour.

    Args:
        rng: Source of randomness.
        hue: Hue in turns (0..1, wraps); any hue if None.

    Returns:
        RGB (3,) in 0..255.
    """
    turns = rng.uniform() if hue is None else hue % 1.0
    rgb = colorsys.hsv_to_rgb(turns, rng.uniform(0.2, 0.7), rng.uniform(0.35, 0.9))
    return np.asarray(rgb, np.float32) * 255


def noise(rng: np.random.Generator, size: int, *, rows: float, columns: float) -> FloatArray:
    """Draw smooth noise: a random grid enlarged to the picture.

    Args:
        rng: Source of randomness.
        size: Side of the picture in pixels.
        rows: Grid cells from top to bottom; few make it smooth along y.
        columns: Grid cells from left to right.

    Returns:
        Noise (size, size) of mean 0 and standard deviation 1.
    """
    shape = (int(np.clip(rows, 2, size)), int(np.clip(columns, 2, size)))
    grid = rng.standard_normal(shape, dtype=np.float32)
    field = cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.asarray((field - field.mean()) / (field.std() + 1e-6), np.float32)


def ground_texture(rng: np.random.Generator, ground: Ground, size: int) -> FloatArray:
    """Draw the texture of a ground over the whole picture: blades, waves or grains.

    Args:
        rng: Source of randomness.
        ground: What to draw.
        size: Side of the picture in pixels.

    Returns:
        RGB (size, size, 3) in 0..255, not clipped.
    """
    patches = noise(rng, size, rows=4, columns=4)
    match ground:
        case "grass":
            blades = noise(rng, size, rows=size / 9, columns=size / 2)
            relief = 0.17 * blades + 0.08 * patches
        case "water":
            y = np.linspace(0, 1, size, dtype=np.float32)[:, None]
            bend = noise(rng, size, rows=5, columns=3)
            waves = np.sin(2 * np.pi * rng.uniform(11, 15) * y + 1.5 * bend)
            relief = 0.16 * waves + 0.06 * patches
        case "sand":
            grains = noise(rng, size, rows=size / 2, columns=size / 2)
            relief = 0.09 * grains + 0.1 * patches
    colour = random_colour(rng, hue=rng.normal(_GROUND_HUE[ground], _GROUND_HUE_SPREAD))
    return np.asarray(colour * (1 + relief[..., None]), np.float32)


def shape_mix(rng: np.random.Generator, shape: Shape, u: FloatArray, v: FloatArray) -> FloatArray:
    """Draw the texture of an object as the share of its second colour.

    Discs are plain, squares checked, triangles striped, stars dotted, rings cut into segments.

    Args:
        rng: Source of randomness.
        shape: What to draw.
        u: Coordinate (H, W) along the object's first axis, in units of the root of its area.
        v: Coordinate (H, W) along its second axis.

    Returns:
        Share (H, W) in 0..1.
    """
    match shape:
        case "disc":
            return np.asarray(0.5 * np.clip(0.5 + u, 0, 1), np.float32)
        case "square":
            turns = rng.integers(2, 4) * np.pi
            wave = np.sin(turns * (u + 0.5)) * np.sin(turns * (v + 0.5)) * 4
        case "triangle":
            wave = np.sin(2 * np.pi * rng.uniform(3, 4) * u) * 2
        case "star":
            pitch = rng.uniform(0.26, 0.32)
            wave = 4 * (np.cos(2 * np.pi * u / pitch) + np.cos(2 * np.pi * v / pitch) - 0.4)
        case "ring":
            wave = np.sin(rng.integers(4, 7) * np.arctan2(v, u)) * 6
    return np.asarray(0.5 + 0.5 * np.clip(wave, -1, 1), np.float32)
