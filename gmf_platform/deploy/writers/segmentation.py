"""Label pictures and overlays."""

from pathlib import Path
from typing import Any

from gmf_platform.deploy.results import SegmentationResult
from gmf_platform.deploy.writers.base import PredictionWriter

__all__ = ["SegmentationWriter"]


class SegmentationWriter(PredictionWriter):
    """Writes of each image a label picture and an overlay.

    ``NAME.png`` holds the labels 0..K-1 as an 8-bit palette picture, so that it is both exact
    and seen in colour; ``NAME_overlay.jpg`` is the image with the labels over it. A row of
    ``predictions.json`` is ``file_name``, ``labels`` (the picture) and ``shares``: of the image's
    pixels, that of each class that occurs.
    """

    suffixes = (".png", "_overlay.jpg")
    what = "labels, overlays and predictions.json"

    def rows(self, source: Path, result: SegmentationResult) -> list[dict[str, Any]]:
        """One of an image."""
        shares = {name: round(share, 6) for name, share in result.shares.items()}
        labels = self.names[str(source)]
        return [{"file_name": str(source), "labels": f"{labels}.png", "shares": shares}]

    def write(self, target: Path, result: SegmentationResult) -> None:
        """Write the labels and the overlay."""
        result.picture().save(target.with_name(f"{target.name}.png"))
        super().write(target, result)
