"""TensorBoard events in the run's own folder, one clean curve over all restarts."""

from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.compat.proto.event_pb2 import (  # type: ignore[import-untyped]
    Event,
    SessionLog,
)

__all__ = ["RunLogger"]


class RunLogger(TensorBoardLogger):
    """Writes to the run's folder itself, without Lightning's version folders.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: Path) -> None:
        super().__init__(save_dir=run, name="", version="")
        self._logged: dict[str, int | None] = {}

    @rank_zero_only
    def resume_at(self, step: int) -> None:
        """Tell TensorBoard to drop what a killed run logged behind its last checkpoint.

        Args:
            step: events of this step and later ones are dropped.
        """
        writer = self.experiment.file_writer
        writer.add_event(Event(step=step, file_version="brain.Event:2"))
        writer.add_event(Event(step=step, session_log=SessionLog(status=SessionLog.START)))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log once for each step, and without Lightning's ``epoch``: the whole run is one of them."""
        own = {
            name: value
            for name, value in metrics.items()
            if name != "epoch" and (step is None or self._logged.get(name) != step)
        }
        self._logged |= dict.fromkeys(own, step)
        super().log_metrics(own, step)

    def save(self) -> None:
        """Flush the events; the config is in config.yaml, not in an hparams.yaml."""
        self.experiment.flush()
