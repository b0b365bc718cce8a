"""What torchrun says about the processes that it has started."""

import os
from dataclasses import dataclass

__all__ = ["Launched", "launched_by_torchrun"]


@dataclass(frozen=True)
class Launched:
    """A start by torchrun.

    Attributes:
        world_size: processes of the job.
        per_node: of them on this node.
        restarts: whether torchrun starts the same command again after a failure.
    """

    world_size: int
    per_node: int
    restarts: bool

    @property
    def nodes(self) -> int:
        """Nodes of the job."""
        return self.world_size // self.per_node


def launched_by_torchrun() -> Launched | None:
    """The start that this process belongs to; None if torchrun has not started it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    return Launched(
        world_size=int(os.environ["WORLD_SIZE"]),
        per_node=int(os.environ["LOCAL_WORLD_SIZE"]),
        restarts=os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0",
    )
