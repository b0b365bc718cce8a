"""Label pictures and overlays."""

from pathlib import Path

from PIL import Image
from torch import Tensor

from datamodules.images import read_image
from gmf_platform.deploy.writers.base import PredictionWriter
from gmf_platform.evaluation.drawing import overlay

__all__ = ["SegmentationWriter"]


class SegmentationWriter(PredictionWriter):
    """Writes of each image a label picture and an overlay.

    ``NAME.png`` holds the labels 0..K-1 as an 8-bit palette picture, so that it is both exact
    and seen in colour; ``NAME_overlay.jpg`` is the image with the labels over it.
    """

    suffixes = (".png", "_overlay.jpg")
    what = "labels and overlays"

    def write(self, source: Path, target: Path, prediction: Tensor) -> None:
        """Write an image's labels uint8 (height, width)."""
        labels = prediction.cpu().numpy()
        picture = Image.fromarray(labels, mode="P")
        picture.putpalette(self.colours.tobytes())
        picture.save(target.with_name(f"{target.name}.png"))
        drawn = overlay(read_image(source), labels, self.colours)
        Image.fromarray(drawn).save(target.with_name(f"{target.name}_overlay.jpg"), quality=92)
