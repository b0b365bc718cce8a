"""What Slurm says about this process: one of a start by srun, or a start by hand inside a job."""

import os
import re
from dataclasses import dataclass

from gmf_platform.cluster.elastic import Launched
from gmf_platform.errors import UserError

__all__ = ["SlurmJob", "Start", "slurm_job", "slurm_start"]

_SPECIAL_STEPS = 0xFFFFFFF0
"""Steps from here on are none of srun's: salloc's shell, the batch script (slurm.h)."""


@dataclass(frozen=True)
class SlurmJob:
    """The job that this process is in.

    Attributes:
        number: the job's.
        nodes: of the job.
        node: the one that this process is on; empty where salloc has left its shell outside.
        is_script: in a batch script, outside any step.
        step: the start by srun that this process is one of several of; None if it was started
            alone: by ``srun --pty``, in a notebook, in the shell of salloc.
    """

    number: str
    nodes: int
    node: str
    is_script: bool
    step: Launched | None


@dataclass(frozen=True)
class Start:
    """One of the starts of a job that Slurm, or a chain of jobs, starts again.

    Attributes:
        job: the first job's number.
        number: 0 for the first start.
    """

    job: str
    number: int


def slurm_job() -> SlurmJob | None:
    """The job that this process is in; None outside Slurm.

    Raises:
        UserError: srun has started different numbers of tasks on the nodes.
    """
    number = os.environ.get("SLURM_JOB_ID")
    if number is None:
        return None
    in_step = int(os.environ.get("SLURM_STEP_ID", _SPECIAL_STEPS)) < _SPECIAL_STEPS
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) if in_step else 1
    return SlurmJob(
        number=number,
        nodes=int(os.environ.get("SLURM_JOB_NUM_NODES", "1")),
        node=os.environ.get("SLURMD_NODENAME", ""),
        is_script=not in_step and os.environ.get("ENVIRONMENT") == "BATCH",
        step=Launched(tasks, _tasks_per_node(), restarts=False) if tasks > 1 else None,
    )


def _tasks_per_node() -> int:
    """From what Slurm writes as ``4(x2)`` for 4 tasks on each of 2 nodes."""
    text = os.environ["SLURM_STEP_TASKS_PER_NODE"]
    numbers = set(re.sub(r"\(x\d+\)", "", text).split(","))
    if len(numbers) > 1:
        raise UserError(
            f"srun has started {text} tasks on the nodes, and they must be as many on each: use "
            "--ntasks-per-node rather than --ntasks"
        )
    return int(numbers.pop())


def slurm_start() -> Start | None:
    """Which start of a job this is; None outside Slurm.

    Slurm counts how often it has requeued a job; ``slurm/common.sh`` numbers the jobs of a chain.
    """
    number = os.environ.get("SLURM_JOB_ID")
    if number is None:
        return None
    # A chain is not requeued, as a rule; if it is, no two of its starts have one number.
    link, restart = (int(os.environ.get(n, "0")) for n in ("CHAIN_LINK", "SLURM_RESTART_COUNT"))
    return Start(os.environ.get("CHAIN_FIRST", number), 1000 * link + restart)
