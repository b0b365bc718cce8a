"""Pictures of the validation images that a model is worst at."""

import math
from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from gmf_platform.callbacks.logger import RunLogger
from gmf_platform.distributed.collect import from_first, to_first
from gmf_platform.errors import check_least
from gmf_platform.evaluation.drawing import Compared, contact_sheet, palette
from gmf_platform.evaluation.per_sample import Row, decisive_score
from gmf_platform.ranges import NonNegativeInt, PositiveInt

__all__ = ["Worst"]


@dataclass(frozen=True)
class _Seen:
    """An image, its score, and what it looks like."""

    score: float
    caption: str
    drawn: Compared


class Worst(Callback):
    """Writes to TensorBoard, after each validation of a fit, the images that are worst predicted.

    Each with truth and prediction, the worst first. They are those of all processes, of the same
    images each time.

    Args:
        count: images of a sheet; 0 for none.
        among: about so many images are scored, evenly spaced over the split: COCO's AP of a single
            image takes the processor 10 to 25 ms. `validate` scores all of them, for `show`.
        by: ``score``, the IoU or AP of the image alone or the probability of its true class; or
            ``loss``, where the task knows that of an image: detection does not, nor does
            segmentation at several scales, which go by the score then.

    Raises:
        UserError: ``among`` is no number of images.
    """

    def __init__(
        self,
        count: NonNegativeInt = 8,
        among: PositiveInt = 500,
        by: Literal["score", "loss"] = "score",
    ) -> None:
        super().__init__()
        check_least("worst.among", among)
        self.count, self.among, self.by = count, among, by
        self._every = 1
        self._seen: dict[str, list[_Seen]] = {}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self._seen = {name: [] for name, _ in pl_module.parts()}  # type: ignore[operator]

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score the images, and draw those that are among the worst so far."""
        if not self._is_wanted(trainer):
            return
        parts = list(pl_module.pictured(batch, outputs))  # type: ignore[operator]
        if batch_idx == 0:
            images = sum(len(part["ids"]) for _, _, part, _ in parts) * trainer.world_size
            self._every = max(1, round(trainer.num_val_batches[0] * images / self.among))
        if batch_idx % self._every:
            return
        for name, task, part, output in parts:
            worst = self._seen[name]
            for i, image_id in enumerate(part["ids"]):
                row = task.sample_scores(part, output, i)
                title, value = self._value(row)
                score = -value if title == "loss" else value  # small is bad
                if score >= (worst[-1].score if len(worst) == self.count else math.inf):
                    continue
                caption = f"{image_id}  {title} {value:.3f} {row.get('worst_class', '')}"
                seen = _Seen(score, caption, task.compared(part, output, i))
                insort(worst, seen, key=lambda other: other.score)
                del worst[self.count :]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the worst of all processes, and draw the sheets."""
        if not self._is_wanted(trainer):
            return
        sheets = self._gathered(trainer.global_rank)
        self._seen = {}
        for name, task in pl_module.parts():  # type: ignore[operator]
            if not sheets.get(name):
                continue
            picture = _sheet(sheets[name], task.class_names)
            tag = "/".join(filter(None, ("val", name, "worst")))
            for logger in trainer.loggers:
                if isinstance(logger, RunLogger):
                    logger.add_picture(tag, picture, step=trainer.global_step - 1, photos=True)

    def _value(self, row: Row) -> tuple[str, float]:
        """Name and value of what an image is judged by; infinite if there is nothing."""
        loss = float(row.get("loss", math.nan))
        if self.by == "loss" and not math.isnan(loss):
            return "loss", loss
        return decisive_score(row) or ("", math.inf)

    def _is_wanted(self, trainer: Trainer) -> bool:
        return self.count > 0 and trainer.state.fn == "fit" and not trainer.sanity_checking

    def _gathered(self, rank: int) -> dict[str, list[_Seen]]:
        """The worst of all processes, on the first one: pictures of no others are sent to it."""
        places = {
            name: [(seen.score, rank, place) for place, seen in enumerate(worst)]
            for name, worst in self._seen.items()
        }
        chosen = from_first(_worst_of(to_first(places) or [], self.count))
        own = {
            name: [(key, self._seen[name][key[2]]) for key in keys if key[1] == rank]
            for name, keys in chosen.items()
        }
        parts = to_first(own) or []
        return {
            name: [seen for _, seen in sorted((x for p in parts for x in p[name]), key=_first)]
            for name in chosen
        }


_Key = tuple[float, int, int]
"""Score, rank and place in what the rank has."""


def _first(pair: tuple[_Key, _Seen]) -> _Key:
    return pair[0]


def _worst_of(parts: Sequence[Mapping[str, list[_Key]]], count: int) -> dict[str, list[_Key]]:
    names = parts[0] if parts else ()
    return {name: sorted(key for part in parts for key in part[name])[:count] for name in names}


def _sheet(worst: Sequence[_Seen], class_names: Sequence[str]) -> Any:
    """Two columns of image, truth and prediction over the classes' legend."""
    colours = palette(len(class_names))
    labels = sorted(set().union(*(seen.drawn.labels for seen in worst)))
    legend = [(class_names[i], colours[i]) for i in labels if i < len(class_names)]
    tiles = [(seen.caption, seen.drawn.picture) for seen in worst]
    return contact_sheet(tiles, legend, columns=min(2, len(tiles)), width=720)
