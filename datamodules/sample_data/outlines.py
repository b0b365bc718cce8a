"""Masks as COCO writes them: boxes, polygons, run lengths. All three give back the exact mask."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["bounding_box", "run_lengths", "to_polygons"]

Mask = NDArray[np.bool_]
Points = NDArray[np.int64]


def bounding_box(mask: Mask) -> list[int]:
    """Bound a mask.

    Args:
        mask: Bool (H, W), not empty.

    Returns:
        ``[left, top, width, height]`` in pixels.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]


def run_lengths(mask: Mask) -> dict[str, Any]:
    """Encode a mask as COCO's uncompressed run lengths.

    Args:
        mask: Bool (H, W).

    Returns:
        ``size`` (height, width) and ``counts``: lengths of the runs of 0, 1, 0, ... down the columns,
        the first of which may be 0.
    """
    flat = np.concatenate([[False], mask.ravel(order="F")])
    starts = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(starts, prepend=0, append=mask.size)
    return {"counts": counts.tolist(), "size": list(mask.shape)}


def to_polygons(mask: Mask) -> list[list[int]]:
    """Outline a mask along the edges of its pixels.

    COCO joins the polygons of an object, so a hole can't be a polygon of its own: it is cut into
    its outline through a slit of no width, which filling by parity closes.

    Args:
        mask: Bool (H, W).

    Returns:
        A polygon ``[x0, y0, x1, y1, ...]`` for each connected part, in whole pixels.
    """
    # Doubled, each pixel's left and right edges get columns of their own: 2 x and 2 x + 1, which
    # (c + 1) // 2 takes to the edges x and x + 1.
    doubled = mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    loops = [_corners((contour[:, 0].astype(np.int64) + 1) // 2) for contour in contours]
    polygons: dict[int, Points] = {}
    parents = [] if hierarchy is None else hierarchy[0, :, 3].tolist()
    for number, parent in enumerate(parents):
        if parent < 0:
            polygons[number] = loops[number]
    for number, parent in enumerate(parents):
        if parent >= 0:
            polygons[parent] = _with_hole(polygons[parent], loops[number])
    return [polygon.ravel().tolist() for polygon in polygons.values()]


def _corners(loop: Points) -> Points:
    """Drop the points (N, 2) of a closed loop that repeat or lie on a straight line."""
    loop = loop[(loop != np.roll(loop, 1, axis=0)).any(1)]
    before, after = loop - np.roll(loop, 1, axis=0), np.roll(loop, -1, axis=0) - loop
    return loop[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]


def _with_hole(outline: Points, hole: Points) -> Points:
    """Cut a hole into an outline: go to it at the nearest corner, around it, and back."""
    gaps = np.abs(outline[:, None] - hole[None]).sum(-1)
    door, entry = np.unravel_index(np.argmin(gaps), gaps.shape)
    around = np.roll(hole, -int(entry), axis=0)
    return np.concatenate([outline[: door + 1], around, around[:1], outline[door:]])
