"""What watches a run: checkpoints, speed, progress, pictures."""

from gmf_platform.callbacks.average import MovingAverage
from gmf_platform.callbacks.bar import Bar
from gmf_platform.callbacks.charts import Charts
from gmf_platform.callbacks.checkpoint import RunCheckpoint
from gmf_platform.callbacks.guard import Guard
from gmf_platform.callbacks.logger import RunLogger
from gmf_platform.callbacks.magnitudes import Magnitudes
from gmf_platform.callbacks.per_sample import PerSample
from gmf_platform.callbacks.pictures import Pictures
from gmf_platform.callbacks.progress import Progress
from gmf_platform.callbacks.throughput import Throughput
from gmf_platform.callbacks.watchdog import Watchdog
from gmf_platform.callbacks.worst import Worst

__all__ = [
    "Bar",
    "Charts",
    "Guard",
    "Magnitudes",
    "MovingAverage",
    "PerSample",
    "Pictures",
    "Progress",
    "RunCheckpoint",
    "RunLogger",
    "Throughput",
    "Watchdog",
    "Worst",
]
