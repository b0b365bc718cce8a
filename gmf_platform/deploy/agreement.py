"""Whether an exported file says of images what the model itself says."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from gmf_platform.errors import UserError
from gmf_platform.evaluation.segmentation import labels_at_original_size
from gmf_platform.models.heads.detection import Detections

__all__ = ["TOLERANCE", "Disagreement", "difference"]

TOLERANCE = 1e-3
"""Of probabilities and scores."""

PIXELS = 0.5
"""Of the edges of boxes."""

_MULTIPLE, _LEAST = 32, 64  # of detection's padding (datamodules/detection.py)

Arrays = Mapping[str, NDArray[Any]]


class Disagreement(UserError):
    """An exported file differs from the model by more than the tolerance."""


@torch.no_grad()
def difference(
    model: Callable[..., Any], outputs: Arrays, images: Tensor, *, task: str, min_score: float
) -> float:
    """Compare what a file gave for images with what the model gives.

    Args:
        model: a task's, in evaluation mode on the CPU; it is asked as in evaluation.
        outputs: of the exported file, by the names of deploy/graphs.py.
        images: uint8 (B, H, W, 3), of one size.
        task: whose results they are, by the names of deploy/graphs.py.
        min_score: of detection, objects of at least this score are compared.

    Returns:
        The largest difference of a probability or score.

    Raises:
        Disagreement: it is more than the tolerance; or labels, or boxes, differ.
    """
    pixels = images.permute(0, 3, 1, 2)
    match task:
        case "classification":
            return _of_classes(model(pixels).softmax(1).numpy(), outputs["probabilities"])
        case "segmentation":
            logits = model(pixels).logits
            both = zip(logits, outputs["labels"], outputs["probabilities"], strict=True)
            return max(_of_pixels(*image, size=images.shape[1:3]) for image in both)
        case "detection":
            found = _detections(model, pixels)
            columns = (outputs[name] for name in ("boxes", "scores", "labels", "count"))
            pairs = zip(found, zip(*columns, strict=True), strict=True)
            return max(_of_objects(ours, theirs, min_score) for ours, theirs in pairs)
    raise ValueError(f"no comparison for {task}")


def _of_classes(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    return _within(float(np.abs(ours - theirs).max()), "a probability")


def _of_pixels(
    logits: Tensor, labels: NDArray[Any], probabilities: NDArray[Any], *, size: Sequence[int]
) -> float:
    """Probabilities must agree; labels may differ only where two are equally likely."""
    height, width = size
    whole = F.interpolate(logits[None], (height, width), mode="bilinear", align_corners=False)[0]
    best = whole.softmax(0)
    theirs = torch.from_numpy(labels.astype(np.int64))
    of_theirs = best.gather(0, theirs[None])[0].numpy()
    ours = labels_at_original_size(
        logits, padded_size=(height, width), size=(height, width), original_size=(height, width)
    )
    of_ours = best.gather(0, ours.long()[None])[0].numpy()
    _within(float((of_ours - of_theirs).max()), "the probability of a pixel's label")
    return _within(float(np.abs(of_ours - probabilities).max()), "a pixel's probability")


def _detections(model: Callable[..., Any], pixels: Tensor) -> list[Detections]:
    """As the task detects them, on images padded as the data pads them."""
    height, width = pixels.shape[-2:]
    below, right = (-(-max(n, _LEAST) // _MULTIPLE) * _MULTIPLE - n for n in (height, width))
    sizes = torch.tensor([[height, width]] * len(pixels))
    found: list[Detections] = model(F.pad(pixels, (0, right, 0, below)), sizes)
    return found


def _of_objects(ours: Detections, theirs: Sequence[NDArray[Any]], min_score: float) -> float:
    """Each object of one side must have its like on the other; pairs are told by label and box."""
    boxes, scores, labels, count = theirs
    first = [x.numpy() for x in (ours.boxes, ours.scores, ours.labels)]
    second = [x[: int(count)] for x in (boxes, scores, labels)]
    return max(_unlike(first, second, min_score), _unlike(second, first, min_score))


def _unlike(
    some: Sequence[NDArray[Any]], others: Sequence[NDArray[Any]], min_score: float
) -> float:
    """The largest difference of the scores of ``some`` objects to their likes among others."""
    worst = 0.0
    for box, score, label in zip(*some, strict=True):
        # An object at the very threshold may fall on either side of it.
        if score < min_score + TOLERANCE:
            continue
        boxes, scores, labels = others
        alike = (labels == label) & (np.abs(boxes - box).max(axis=1, initial=0) <= PIXELS)
        gap = np.abs(scores[alike] - score).min(initial=1.0)
        worst = max(worst, _within(float(gap), f"an object of score {score:.3f} at {box.round()}"))
    return worst


def _within(gap: float, what: str) -> float:
    if not gap <= TOLERANCE:  # also where it is not a number
        raise Disagreement(
            f"the exported file differs from the model: {what} by {gap:.2g}, more than {TOLERANCE}"
        )
    return gap
