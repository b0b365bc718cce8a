"""What an exported graph computes: from uint8 pixels to results, with fixed operations.

The tasks' own evaluation loops over images and takes as many boxes as it finds, which no graph can
hold. The modules here compute the same for a batch of any size. Checks against the tasks are in
deploy/agreement.py.
"""

import math
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms

from gmf_platform.errors import UserError
from gmf_platform.models.classifier import Classifier
from gmf_platform.models.detector import Detector
from gmf_platform.models.heads.detection.anchors import by_anchor
from gmf_platform.models.heads.retinanet import RetinaNet
from gmf_platform.models.joint import Part
from gmf_platform.models.segmenter import Segmenter

__all__ = ["Graph", "graph_of"]

_MULTIPLE = 32  # detection's images are padded to it (datamodules/detection.py)


class Graph(nn.Module):
    """Base of all graphs: images uint8 RGB (B, H, W, 3) to a tuple of tensors.

    Attributes:
        task: whose results they are.
        outputs: their names.
        least: pixels that a side must have.
    """

    least = 64  # of every backbone
    task: str
    outputs: tuple[str, ...]


class ClassificationGraph(Graph):
    """Probabilities float32 (B, K)."""

    task, outputs = "classification", ("probabilities",)

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        return (self.model(images.permute(0, 3, 1, 2)).softmax(1),)


class SegmentationGraph(Graph):
    """Labels uint8 (B, H, W) of the pixels of the input, and the probability of each, float32."""

    task, outputs = "segmentation", ("labels", "probabilities")

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        logits = self.model(images.permute(0, 3, 1, 2)).logits
        whole = F.interpolate(logits, images.shape[1:3], mode="bilinear", align_corners=False)
        best, labels = whole.max(1)
        return labels.to(torch.uint8), (best - whole.logsumexp(1)).exp()


class RetinaNetGraph(Graph):
    """The D best objects of each image, by falling score; those behind the count are zero.

    Boxes float32 (B, D, 4), left, top, right, bottom in pixels of the input, scores (B, D), labels
    int64 (B, D), count int64 (B,). What `RetinaNet` finds for each image: its candidates, some of
    which have too low a score, keep their places, so that there is no size that depends on them.
    """

    task, outputs = "detection", ("boxes", "scores", "labels", "count")
    least = 129  # of 128 and less the coarsest map, of stride 128, has a side of 1: a special case

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model
        self.head: RetinaNet = model.head  # type: ignore[assignment]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        height, width = images.shape[1:3]
        normal = self.model.normalize(images.permute(0, 3, 1, 2))
        # Not -(-n // m): ONNX divides integers towards zero.
        right, below = ((n + _MULTIPLE - 1) // _MULTIPLE * _MULTIPLE - n for n in (width, height))
        features = self.model.backbone(F.pad(normal, (0, right, 0, below)))
        maps = self.head.neck(features[1:])
        levels = [
            self._candidates(*level) for level in zip(maps, self.head.anchors(maps), strict=True)
        ]
        boxes, scores, labels = (torch.cat(parts, 1) for parts in zip(*levels, strict=True))
        edges = [torch.scalar_tensor(n, dtype=boxes.dtype) for n in (width, height)]
        limits = torch.stack([*edges, *edges])
        boxes = torch.minimum(boxes.clamp(min=0), limits)
        return self._best(boxes, scores, labels, limits)

    def _candidates(self, x: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, N, 4), scores (B, N) and labels (B, N) of the N best anchors of a level."""
        classes, number = self.head.num_classes, self.head.candidates
        scores = by_anchor(self.head.class_tower(x), classes).sigmoid().flatten(1)
        deltas = by_anchor(self.head.box_tower(x), 4)
        # Small levels have fewer than N; a score of zero is no candidate.
        best, order = F.pad(scores, (0, number)).topk(number)
        order = order * (best > 0)
        anchor, label = order // classes, order % classes
        own = deltas.gather(1, anchor[..., None].expand(-1, -1, 4))
        return self.head.coder.decode(anchors[anchor], own), best, label

    def _best(
        self, boxes: Tensor, scores: Tensor, labels: Tensor, limits: Tensor
    ) -> tuple[Tensor, ...]:
        """The outputs, from candidates (B, M, ...) inside images of a size."""
        selection = self.head.selection
        solid = (boxes[..., 2:] > boxes[..., :2]).prod(-1)
        scores = scores * solid * (scores > selection.min_score)
        apart = boxes + self._shifts(labels, limits)
        kept = nms(apart.flatten(0, 1), scores.flatten(), selection.max_overlap)
        is_kept = torch.zeros_like(scores.flatten()).index_fill(0, kept, 1.0)
        best, order = (scores * is_kept.view_as(scores)).topk(selection.number)
        found = best > 0
        chosen = boxes.gather(1, order[..., None].expand(-1, -1, 4)) * found[..., None]
        return chosen, best, labels.gather(1, order) * found, found.sum(1)

    def _shifts(self, labels: Tensor, limits: Tensor) -> Tensor:
        """Move boxes apart that may overlap: those of other classes, and of other images.

        Classes of one image lie on a square board, images under each other: coordinates stay
        small, so that float32 still tells hundredths of a pixel.
        """
        columns = math.ceil(math.sqrt(self.head.num_classes))
        rows = -(-self.head.num_classes // columns)
        images = torch.arange(labels.shape[0], device=labels.device)[:, None]
        x = (labels % columns) * (limits[0] + 1)
        y = (labels // columns + images * rows) * (limits[1] + 1)
        return torch.stack([x, y, x, y], dim=-1)


class AdaptivePool(nn.Module):
    """Average pooling to a square grid, as ``nn.AdaptiveAvgPool2d``, by two matrix products.

    ONNX has no such pooling for sizes that the graph does not know.
    """

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells
        # A constant: of a Range of constants onnxruntime complains when it loads the file.
        self.numbers = nn.Buffer(torch.arange(cells)[:, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, cells, cells)."""
        rows, columns = (self._shares(n, x) for n in x.shape[-2:])
        return rows @ x @ columns.mT

    def _shares(self, length: int, like: Tensor) -> Tensor:
        """Share (cells, length) of each row, or column, in the mean of a cell."""
        first = self.numbers * length // self.cells
        end = ((self.numbers + 1) * length + self.cells - 1) // self.cells
        place = torch.arange(length, device=like.device)
        inside = (place >= first) & (place < end)
        return inside.to(like.dtype) / (end - first)


def graph_of(model: nn.Module | Part) -> Graph:
    """The graph of a task's model, one of several too; the model itself is left as it is.

    Raises:
        UserError: what it computes cannot be put into a graph.
    """
    model = model.apart() if isinstance(model, Part) else deepcopy(model)
    model = model.cpu().float().eval()
    for parent in list(model.modules()):
        for name, part in parent.named_children():
            if isinstance(part, nn.AdaptiveAvgPool2d):
                parent.add_module(name, AdaptivePool(_side(part.output_size)))
    match model:
        case Classifier():
            return ClassificationGraph(model)
        case Segmenter():
            model.auxiliary_head = None  # it helps in training alone
            return SegmentationGraph(model)
        case Detector(head=RetinaNet()):
            return RetinaNetGraph(model)
        case Detector():
            raise UserError(
                f"export: a model with the head {type(model.head).__name__} cannot be exported: its "
                "second stage looks at as many regions as an image has, each on the level of the "
                "pyramid that fits it, and the exporter has no operations for that. RetinaNet can "
                "be exported; this model predicts in Python (gmf_platform.load) and with the verb "
                "predict"
            )
    raise UserError(f"export: nothing here exports a {type(model).__name__}")


def _side(output_size: Any) -> int:
    sides = {output_size} if isinstance(output_size, int) else set(output_size)
    if len(sides) != 1:
        raise UserError(f"export: pooling to {output_size} cells is not square")
    return int(sides.pop())
