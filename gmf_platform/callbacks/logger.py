"""TensorBoard events in the run's own folder, one clean curve over all restarts."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray
from PIL import Image
from tensorboard.compat.proto.event_pb2 import (  # type: ignore[import-untyped]
    Event,
    SessionLog,
)
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

from gmf_platform.evaluation.precision_recall import THRESHOLDS, Curve

__all__ = ["RunLogger"]


class RunLogger(TensorBoardLogger):
    """Writes to the run's folder itself, without Lightning's version folders.

    Args:
        run: the run's folder.
        texts: by title, as of the config; shown as they stand, of the step that training begins
            or goes on at.
    """

    def __init__(self, run: Path, texts: Mapping[str, str] | None = None) -> None:
        super().__init__(save_dir=run, name="", version="")
        self.run, self.texts = run, texts or {}
        self._logged: dict[str, int | None] = {}

    @rank_zero_only
    def resume_at(self, step: int) -> None:
        """Begin to train: have TensorBoard drop what a killed run logged behind its last checkpoint.

        Args:
            step: events of this step and later ones are dropped.
        """
        writer = self.experiment.file_writer
        writer.add_event(Event(step=step, file_version="brain.Event:2"))
        writer.add_event(Event(step=step, session_log=SessionLog(status=SessionLog.START)))
        for title, text in self.texts.items():
            block = "\n".join(f"    {line}" for line in text.splitlines())  # Markdown's for code
            self.experiment.add_text(title, block, step)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log once for each step, and without Lightning's ``epoch``: the whole run is one of them."""
        own = {
            name: value
            for name, value in metrics.items()
            if name != "epoch" and (step is None or self._logged.get(name) != step)
        }
        self._logged |= dict.fromkeys(own, step)
        super().log_metrics(own, step)

    @rank_zero_only
    def add_picture(
        self, tag: str, picture: NDArray[np.uint8], *, step: int, photos: bool = False
    ) -> None:
        """Show a picture (H, W, 3); one of photographs as JPEG, a tenth of the size of a PNG."""
        file = BytesIO()
        Image.fromarray(picture).save(file, format="JPEG" if photos else "PNG", quality=90)
        height, width = picture.shape[:2]
        image = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=file.getvalue()
        )
        summary = Summary(value=[Summary.Value(tag=tag, image=image)])
        self.experiment.file_writer.add_summary(summary, step)

    @rank_zero_only
    def add_curve(self, tag: str, curve: Curve, *, step: int) -> None:
        """Show precision over recall."""
        self.experiment.add_pr_curve_raw(tag, *curve, step, num_thresholds=THRESHOLDS)

    @rank_zero_only
    def set_layout(self, layout: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """Lay out several scalars a chart.

        Args:
            layout: of each category the charts, of each chart regular expressions of its tags.
        """
        charts = {
            category: {title: ["Multiline", list(tags)] for title, tags in charts.items()}
            for category, charts in layout.items()
        }
        self.experiment.add_custom_scalars(charts)

    def save(self) -> None:
        """Flush the events; the config is in config.yaml, not in an hparams.yaml.

        Raises:
            OSError: the disk does not take them; it names the run's folder.
        """
        with _naming(self.run):
            self.experiment.flush()

    def finalize(self, status: str) -> None:
        """Flush and close.

        Raises:
            OSError: see `save`.
        """
        with _naming(self.run):
            super().finalize(status)


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Say where a write has failed: TensorBoard's thread hands on an error without a name."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(folder)) from error
