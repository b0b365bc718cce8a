"""Inside a Slurm job: as many processes as srun has started, or a command's own."""

import pytest
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from gmf_platform.cli.experiment import is_first_process
from gmf_platform.cli.launch import as_launched
from gmf_platform.distributed import DDP
from gmf_platform.errors import UserError

KEYS = {
    "accelerator": "cpu",
    "devices": "auto",
    "num_nodes": 1,
    "strategy": "auto",
    "plugins": None,
}


@pytest.fixture
def job(monkeypatch):
    """A job of two nodes, and a start of it."""

    def start(tasks=4, per_node="2(x2)", nodes=2, **variables):
        monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
        monkeypatch.setenv("SLURM_JOB_ID", "12")
        monkeypatch.setenv("SLURM_JOB_NUM_NODES", str(nodes))
        monkeypatch.setenv("SLURMD_NODENAME", "node1")
        monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "1")
        monkeypatch.setenv("SLURM_NTASKS", str(tasks))
        monkeypatch.setenv("SLURM_STEP_ID", "0")
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", str(tasks))
        monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", per_node)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return start


def test_as_many_as_srun_has_started(job):
    job()
    keys = as_launched(dict(KEYS))
    assert (keys["devices"], keys["num_nodes"]) == (2, 2)
    assert isinstance(keys["strategy"], DDP)
    (environment,) = keys["plugins"]
    assert isinstance(environment, SLURMEnvironment)
    assert not environment.auto_requeue
    environment.validate_settings(num_devices=2, num_nodes=2)


@pytest.mark.parametrize("asked", [{"devices": 1}, {"devices": 4}, {"num_nodes": 3}])
def test_another_number_than_asked_for(job, asked):
    job()
    with pytest.raises(UserError, match="srun has started 4 processes, 2 on this node"):
        as_launched(KEYS | asked)


@pytest.mark.parametrize("visible", [1, 4])
def test_tasks_and_visible_gpus(job, monkeypatch, visible):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: visible)
    job()
    as_launched(dict(KEYS))  # on CPUs, whatever there is
    with pytest.raises(UserError, match=f"2 tasks on this node, and each sees {visible} GPUs"):
        as_launched(KEYS | {"accelerator": "auto"})


def test_started_once(job, capsys):
    job(tasks=1)
    keys = as_launched(KEYS | {"devices": 2})
    assert keys["devices"] == 2
    (environment,) = keys["plugins"]
    assert isinstance(environment, LightningEnvironment)
    assert "inside job 12, started once: takes 2 devices of this node, node1" in (
        capsys.readouterr().err
    )


def test_a_process_that_the_command_has_started(job, monkeypatch, capsys):
    """It says nothing again, and Slurm's rank 0, which it inherits, is not its own."""
    job(tasks=1, LOCAL_RANK="1", SLURM_PROCID="0")
    monkeypatch.delenv("RANK", raising=False)
    as_launched(dict(KEYS))
    assert capsys.readouterr().err == ""
    assert not is_first_process()


@pytest.mark.parametrize("asked", [{}, {"num_nodes": 2}])
def test_a_script_without_srun(job, monkeypatch, asked):
    job(tasks=1, ENVIRONMENT="BATCH")
    monkeypatch.delenv("SLURM_STEP_ID")
    with pytest.raises(UserError, match=r"job 12 has 2 nodes .* put srun before it"):
        as_launched(KEYS | asked)


def test_an_environment_of_the_users_own(job):
    job()
    own = LightningEnvironment()
    assert as_launched(KEYS | {"plugins": [own]})["plugins"] == [own]
