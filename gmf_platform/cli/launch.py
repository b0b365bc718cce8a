"""How many processes the trainer has: what the config asks for, and what a launcher has started."""

from typing import Any

from gmf_platform.cluster.elastic import launched_by_torchrun
from gmf_platform.distributed import DDP
from gmf_platform.errors import UserError

__all__ = ["as_launched"]


def as_launched(keys: dict[str, Any]) -> dict[str, Any]:
    """The trainer's keys for the processes that torchrun has started.

    Raises:
        UserError: they are not as many as the config asks for.
    """
    launched = launched_by_torchrun()
    if launched is None:
        return keys
    devices, nodes = _count(keys["devices"]) or launched.per_node, keys["num_nodes"]
    nodes = launched.nodes if nodes == 1 else nodes
    if devices * nodes != launched.world_size:
        raise UserError(
            f"trainer.devices: the config asks for {devices} on {nodes} nodes, and torchrun has "
            f"started {launched.world_size} processes, {launched.per_node} on this node; with "
            "trainer.devices: auto and trainer.num_nodes: 1 its numbers are taken"
        )
    keys |= {"devices": devices, "num_nodes": nodes}
    if keys["strategy"] == "auto" and launched.world_size > 1:
        keys["strategy"] = DDP()
    return keys


def _count(devices: Any) -> int | None:
    """How many devices ``trainer.devices`` means; None for all there are."""
    match devices:
        case "auto" | -1 | "-1":
            return None
        case str() if "," in devices:
            return len([part for part in devices.split(",") if part.strip()])
        case list():
            return len(devices)
        case _:
            return int(devices)
