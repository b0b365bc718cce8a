"""Outlines of the object classes."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["FloatArray", "Shape", "signed_distance"]

FloatArray = NDArray[np.float32]
Shape = Literal["disc", "square", "triangle", "star", "ring"]


def signed_distance(shape: Shape, u: FloatArray, v: FloatArray) -> FloatArray:
    """Signed distance to the edge of a shape of area 1 around the origin, negative inside.

    The sizes follow from area 1: ``pi r^2`` for the disc, ``n a^2 tan(pi / n)`` for a polygon of n
    sides at distance a, ``n r q sin(pi / n)`` for a star of n tips at r and notches at q = r / 2,
    and ``pi (r^2 - q^2)`` for a ring, q = r / 2. Outside of corners it is a lower bound.

    Args:
        shape: The shape.
        u: First coordinate of the points, of any size.
        v: Second coordinate of the points.

    Returns:
        Distances, of the size of ``u`` and in its units.
    """
    match shape:
        case "disc":
            return np.hypot(u, v) - np.float32(np.pi**-0.5)
        case "square":
            return _fold(u, v, 4)[0] - np.float32(0.5)
        case "triangle":
            return _fold(u, v, 3)[0] - np.float32((3 * np.tan(np.pi / 3)) ** -0.5)
        case "star":
            return _star_distance(u, v)
        case "ring":
            radius = (np.pi * 0.75) ** -0.5
            return np.abs(np.hypot(u, v) - np.float32(0.75 * radius)) - np.float32(radius / 4)


def _star_distance(u: FloatArray, v: FloatArray) -> FloatArray:
    """Distance to the line from a tip at (r, 0) to the next notch, in one folded wedge."""
    radius = (2.5 * np.sin(np.pi / 5)) ** -0.5
    along, aside = _fold(u, v, 5)
    notch = np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)]) * radius / 2
    edge = np.array([radius, 0]) - notch
    normal = np.array([-edge[1], edge[0]]) / np.hypot(*edge)
    return np.asarray(normal[0] * (along - radius) + normal[1] * aside, np.float32)


def _fold(u: FloatArray, v: FloatArray, times: int) -> tuple[FloatArray, FloatArray]:
    """Fold the plane into the half wedge of angles 0..pi / times that a symmetric shape repeats."""
    wedge = 2 * np.pi / times
    angle = np.abs((np.arctan2(v, u) + wedge / 2) % wedge - wedge / 2)
    radius = np.hypot(u, v)
    return radius * np.cos(angle), radius * np.sin(angle)
