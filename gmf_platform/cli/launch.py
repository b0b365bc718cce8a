"""How many processes the trainer has: what the config asks for, and what a launcher has started."""

import os
import sys
from typing import Any

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from gmf_platform.cluster.elastic import Launched, launched_by_torchrun
from gmf_platform.cluster.slurm import SlurmJob, slurm_job
from gmf_platform.distributed import DDP
from gmf_platform.errors import UserError

__all__ = ["as_launched"]


def as_launched(keys: dict[str, Any]) -> dict[str, Any]:
    """The trainer's keys for the processes that torchrun or srun has started.

    Inside a Slurm job, a command that was started once starts its own processes, on its own node.

    Raises:
        UserError: they are not as many as the config asks for.
    """
    launched = launched_by_torchrun()
    if launched is not None:
        return _as_many(keys, launched, "torchrun")
    job = slurm_job()
    if job is None:
        return keys
    if job.step is None:
        _say_alone(keys, job)
        return _with(keys, LightningEnvironment())
    keys = _as_many(keys, job.step, "srun")
    _check_visible(keys["accelerator"], job.step.per_node)
    # Lightning compares it with the devices; the job's own may be of another step.
    os.environ["SLURM_NTASKS_PER_NODE"] = str(job.step.per_node)
    # Lightning's requeueing saves inside the signal handler, which can deadlock.
    return _with(keys, SLURMEnvironment(auto_requeue=False))


def _as_many(keys: dict[str, Any], launched: Launched, launcher: str) -> dict[str, Any]:
    devices, nodes = _count(keys["devices"]) or launched.per_node, keys["num_nodes"]
    nodes = launched.nodes if nodes == 1 else nodes
    if devices * nodes != launched.world_size:
        raise UserError(
            f"trainer.devices: the config asks for {devices} on {nodes} nodes, and {launcher} has "
            f"started {launched.world_size} processes, {launched.per_node} on this node; with "
            "trainer.devices: auto and trainer.num_nodes: 1 its numbers are taken"
        )
    keys |= {"devices": devices, "num_nodes": nodes}
    if keys["strategy"] == "auto" and launched.world_size > 1:
        keys["strategy"] = DDP()
    return keys


def _say_alone(keys: dict[str, Any], job: SlurmJob) -> None:
    """Say that a command inside a job is not one of several.

    Raises:
        UserError: nodes would be left idle that the config or the job's script has asked for.
    """
    nodes = keys["num_nodes"]
    if nodes > 1 or (job.is_script and job.nodes > 1):
        raise UserError(
            f"job {job.number} has {job.nodes} nodes and the config asks for {nodes}, but the "
            "command was started once, and not on each: put srun before it, or submit "
            "slurm/train.sh"
        )
    if "LOCAL_RANK" in os.environ:
        return  # one of those that the command has started
    where = f"this node, {job.node}" if job.node else "this machine, which need not be of the job"
    count = _count(keys["devices"])
    devices = "all devices" if count is None else f"{count} device{'s' * (count > 1)}"
    print(
        f"inside job {job.number}, started once: takes {devices} of {where}"
        + ("" if job.node else "; srun --pty bash goes to its node"),
        file=sys.stderr,
    )


def _check_visible(accelerator: Any, tasks: int) -> None:
    """Refuse to leave GPUs idle, or to look for those that a task does not see.

    Raises:
        UserError: tasks and GPUs are not as many.
    """
    if accelerator == "cpu" or not torch.cuda.is_available():
        return
    visible = torch.cuda.device_count()
    if visible != tasks:
        raise UserError(
            f"{tasks} tasks on this node, and each sees {visible} GPUs: ask Slurm for one task a "
            "GPU (--gpus-per-node N --ntasks-per-node N), and let each see all GPUs of its node "
            "(no --gpus-per-task or --gpu-bind)"
        )


def _with(keys: dict[str, Any], environment: ClusterEnvironment) -> dict[str, Any]:
    """The keys with a cluster environment, unless the config names one."""
    plugins = keys.get("plugins") or []
    plugins = plugins if isinstance(plugins, list) else [plugins]
    if not any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
        keys["plugins"] = [*plugins, environment]
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
