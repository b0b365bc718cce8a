"""What a model says of one image, and a picture of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as run_lengths
from torch import Tensor

from datamodules.images import ImageSource, read_source
from gmf_platform.errors import UserError
from gmf_platform.evaluation import Guesses, ImageDetections
from gmf_platform.evaluation.class_pictures import Guess, captioned
from gmf_platform.evaluation.drawing import overlay, palette
from gmf_platform.evaluation.object_drawing import draw_objects, found_objects

__all__ = [
    "ClassificationResult",
    "DetectionResult",
    "JointResult",
    "Result",
    "SegmentationResult",
    "as_result",
    "as_results",
    "classes_of",
]

MIN_SCORE = 0.3
"""Detections that score less are not drawn, unless asked for."""


@dataclass(frozen=True, eq=False)
class ClassificationResult:
    """The most probable classes of an image.

    Attributes:
        image: the image, or its file, which `draw` reads again.
        names: of the five most probable classes (or all, if they are fewer), the first first.
        probabilities: of each.
        labels: of each, 0..K-1.
    """

    image: ImageSource
    names: list[str]
    probabilities: list[float]
    labels: list[int]

    @property
    def guesses(self) -> list[Guess]:
        """Each name with its probability."""
        return list(zip(self.names, self.probabilities, strict=True))

    def draw(self) -> Image.Image:
        """The image over a strip that names its classes."""
        return Image.fromarray(captioned(read_source(self.image), self.guesses))


@dataclass(frozen=True, eq=False)
class SegmentationResult:
    """The class of each pixel.

    Attributes:
        image: the image, or its file, which `draw` reads again.
        labels: uint8 (H, W), 0..K-1, at the image's own size.
        class_names: in label order.
    """

    image: ImageSource
    labels: NDArray[np.uint8]
    class_names: Sequence[str]

    @cached_property
    def shares(self) -> dict[str, float]:
        """Share of the pixels of each class that occurs, the largest first."""
        counts = np.bincount(self.labels.ravel()) / self.labels.size
        order = (int(label) for label in np.argsort(-counts, kind="stable") if counts[label])
        return {self.class_names[label]: float(counts[label]) for label in order}

    def draw(self) -> Image.Image:
        """The image with its labels painted over it."""
        colours = palette(len(self.class_names))
        return Image.fromarray(overlay(read_source(self.image), self.labels, colours))

    def picture(self) -> Image.Image:
        """The labels alone, as an 8-bit palette picture: both exact and seen in colour."""
        labels = Image.fromarray(self.labels)
        labels.putpalette(palette(len(self.class_names)).tobytes())
        return labels


@dataclass(frozen=True, eq=False)
class DetectionResult:
    """The objects of an image, by falling score.

    Attributes:
        image: the image, or its file, which `draw` reads again.
        found: as the evaluation has them; the attributes below are read from it.
        class_names: in label order.
    """

    image: ImageSource
    found: ImageDetections
    class_names: Sequence[str]

    @property
    def boxes(self) -> NDArray[np.floating[Any]]:
        """Left, top, right, bottom (N, 4) in pixels of the original image."""
        return self.found.boxes

    @property
    def scores(self) -> NDArray[np.float32]:
        """(N,), 0..1."""
        return self.found.scores

    @property
    def labels(self) -> NDArray[np.int16]:
        """(N,), 0..K-1."""
        return self.found.labels

    @property
    def names(self) -> list[str]:
        """The class of each."""
        return [self.class_names[label] for label in self.labels]

    @cached_property
    def masks(self) -> NDArray[np.bool_] | None:
        """(N, H, W) at the size of the original image; None from a head without masks."""
        if self.found.rles is None:
            return None
        decoded = [run_lengths.decode(rle) for rle in self.found.segmentations()]
        return np.array(decoded, dtype=bool).reshape(-1, *self.found.size)

    def above(self, score: float) -> "DetectionResult":
        """Only those of at least a score."""
        return DetectionResult(self.image, self.found.above(score), self.class_names)

    def draw(self, *, min_score: float = MIN_SCORE) -> Image.Image:
        """The image with boxes and masks of those of at least a score."""
        objects = found_objects(self.found, min_score=min_score, class_names=self.class_names)
        colours = palette(len(self.class_names))
        return Image.fromarray(draw_objects(read_source(self.image), objects, colours))


class JointResult(dict[str, "Result"]):
    """What each task of a joint model says of an image, by the task's name."""

    def draw(self) -> Image.Image:
        """The tasks' pictures side by side."""
        pictures = [result.draw() for result in self.values()]
        size = (
            sum(picture.width for picture in pictures),
            max(picture.height for picture in pictures),
        )
        sheet, left = Image.new("RGB", size, "white"), 0
        for picture in pictures:
            sheet.paste(picture, (left, 0))
            left += picture.width
        return sheet


Result = ClassificationResult | SegmentationResult | DetectionResult | JointResult


def classes_of(task: str, class_names: Sequence[str]) -> list[str]:
    """The classes of a task among those of all tasks, which are called ``TASK/CLASS``."""
    begin = f"{task}/"
    return [name.removeprefix(begin) for name in class_names if name.startswith(begin)]


def as_results(
    predictions: Any, images: Sequence[ImageSource], class_names: Sequence[str]
) -> list[Result]:
    """What a task's ``predict_step`` says of a batch, for people.

    Args:
        predictions: of each image; of several tasks by the tasks' names.
        images: of the batch, or their files.
        class_names: in label order; of several tasks ``TASK/CLASS``.

    Raises:
        UserError: see `as_result`.
    """
    if isinstance(predictions, Mapping):
        by_task = {
            task: as_results(own, images, classes_of(task, class_names))
            for task, own in predictions.items()
        }
        one_image = zip(*by_task.values(), strict=True)
        return [JointResult(zip(by_task, results, strict=True)) for results in one_image]
    return [
        as_result(prediction, image, class_names)
        for prediction, image in zip(predictions, images, strict=True)
    ]


def as_result(prediction: Any, image: ImageSource, class_names: Sequence[str]) -> Result:
    """What a task's ``predict_step`` says of one image, for people.

    Args:
        prediction: of the image.
        image: the image, or its file.
        class_names: in label order.

    Raises:
        UserError: the prediction is of a task that is none of ours.
    """
    match prediction:
        case Guesses(labels=labels):
            names, shares = zip(*prediction.named(class_names), strict=True)
            return ClassificationResult(image, list(names), list(shares), labels.tolist())
        case ImageDetections():
            return DetectionResult(image, prediction, class_names)
        case Tensor():
            return SegmentationResult(image, prediction.cpu().numpy(), class_names)
        case _:
            raise UserError(
                f"predictions of {type(prediction).__name__} are those of no task known here"
            )
