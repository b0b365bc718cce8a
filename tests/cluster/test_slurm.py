"""What Slurm's variables, as 22.05 sets them, say about a process."""

import os

import pytest

from gmf_platform.cluster.slurm import Start, slurm_job, slurm_start
from gmf_platform.errors import UserError

BATCH = {
    "SLURM_JOB_ID": "12",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "0",
    "SLURMD_NODENAME": "node1",
    "ENVIRONMENT": "BATCH",
}
STEP = BATCH | {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}


@pytest.fixture
def inside(monkeypatch):
    def setting(variables):
        for name in [name for name in os.environ if name.startswith(("SLURM", "CHAIN"))]:
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return setting


def test_outside(inside):
    inside({})
    assert slurm_job() is None
    assert slurm_start() is None


def test_one_of_several(inside):
    inside(STEP)
    job = slurm_job()
    assert job.step.world_size == 4
    assert (job.step.per_node, job.step.nodes) == (2, 2)
    assert not job.is_script


@pytest.mark.parametrize(
    ("variables", "is_script"),
    [
        (BATCH, True),
        (STEP | {"SLURM_STEP_NUM_TASKS": "1"}, False),  # srun --pty
        (STEP | {"SLURM_STEP_ID": "4294967290"}, False),  # salloc with a shell on the node
    ],
)
def test_started_once(inside, variables, is_script):
    inside(variables | ({} if is_script else {"ENVIRONMENT": ""}))
    job = slurm_job()
    assert job.step is None
    assert job.is_script == is_script
    assert (job.nodes, job.node) == (2, "node1")


def test_the_shell_of_salloc_outside_the_nodes(inside):
    inside({"SLURM_JOB_ID": "12", "SLURM_NTASKS": "4", "SLURM_JOB_NUM_NODES": "1"})
    job = slurm_job()
    assert job.step is None
    assert job.node == ""


def test_unequal_nodes(inside):
    inside(STEP | {"SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_TASKS_PER_NODE": "2,1"})
    with pytest.raises(UserError, match="--ntasks-per-node rather than --ntasks"):
        slurm_job()


def test_starts_of_a_job_and_of_a_chain(inside):
    inside(BATCH)
    assert slurm_start() == Start("12", 0)
    inside(BATCH | {"SLURM_RESTART_COUNT": "3"})
    assert slurm_start() == Start("12", 3)
    inside(BATCH | {"CHAIN_LINK": "1", "CHAIN_FIRST": "11"})
    chained = slurm_start()
    assert chained.job == "11"
    assert chained.number > 3
