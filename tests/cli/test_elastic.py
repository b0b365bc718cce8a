"""torchrun: as many processes as it starts, and a group that is restarted is the one undisturbed."""

import os
import re
import socket
import subprocess
import sys

import pytest
import torch
import yaml

from gmf_platform.cli.launch import as_launched
from gmf_platform.distributed import DDP
from gmf_platform.errors import UserError

MORTAL = '''
"""Kills a rank in each life that the environment names: RESTARTS:RANK:STEP, ..."""

import os
import signal

from lightning.pytorch import Callback


class Mortal(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        life = os.environ.get("TORCHELASTIC_RESTART_COUNT")
        here = f"{life}:{trainer.global_rank}:{trainer.global_step}"
        if here in os.environ.get("DEATHS", "").split():
            os.kill(os.getpid(), signal.SIGKILL)
'''


@pytest.fixture
def line(base, modules, tmp_path):
    modules("mortal", MORTAL)
    content = {"trainer": {"callbacks": [{"class_path": "mortal.Mortal"}], "accelerator": "cpu"}}
    (tmp_path / "mortal.yaml").write_text(yaml.safe_dump(content))
    return ("fit", *base, "--config", tmp_path / "mortal.yaml", "--config", "strategy/ddp")


@pytest.mark.slow
def test_a_killed_rank_restarts_the_group(line, call_processes, tmp_path):
    """The second process dies in the first life, and the first one in the second."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ("--nproc-per-node", "2", "--max-restarts", "2", "--master-port", port)
    words = (sys.executable, "-m", "torch.distributed.run", *launcher, "-m", "gmf_platform", *line)
    done = subprocess.run(
        [str(word) for word in (*words, "--name", "killed")],
        cwd=tmp_path,
        env=os.environ
        | {
            "DEATHS": "0:1:3 1:0:5",
            "PYTHONPATH": f"{tmp_path / 'modules'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        },
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    log = (tmp_path / "runs" / "killed" / "log.txt").read_text()
    assert re.findall(r"going on at step (\d) of 6", log) == ["3", "4"]

    results = call_processes(2, *line, "--name", "whole", cwd=tmp_path)
    assert [result.code for result in results] == [0, 0], results[0].err
    weights, expected = (
        torch.load(tmp_path / "runs" / name / "checkpoints" / "last.ckpt", weights_only=True)
        for name in ("killed", "whole")
    )
    assert weights["global_step"] == expected["global_step"] == 6
    for name, tensor in expected["state_dict"].items():
        assert torch.equal(weights["state_dict"][name], tensor), name


def test_as_many_as_torchrun_starts(line, call_processes, tmp_path):
    """``devices: auto`` on a CPU is one device otherwise."""
    words = (*line, "--name", "a", "--trainer.max_steps", "1")
    results = call_processes(2, *words, cwd=tmp_path)
    assert [result.code for result in results] == [0, 0], results[0].err
    assert "2 devices" in results[0].out


@pytest.mark.parametrize("devices", ["1", "3", "[0, 1, 2]"])
def test_another_number_than_asked_for(line, call_processes, tmp_path, devices):
    results = call_processes(2, *line, "--trainer.devices", devices, cwd=tmp_path)
    assert [result.code for result in results] == [2, 2]
    assert "torchrun has started 2 processes, 2 on this node" in results[0].err


def test_what_would_not_survive_a_restart(line, gmf, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    result = gmf(*line, "--fresh")
    assert result.code == 2
    assert "--fresh: torchrun with --max-restarts would begin anew" in result.err


KEYS = {"devices": "auto", "num_nodes": 1, "strategy": "auto"}


@pytest.mark.parametrize(
    ("asked", "devices", "nodes"),
    [
        ({}, 4, 2),
        ({"devices": -1}, 4, 2),
        ({"devices": 4, "num_nodes": 2}, 4, 2),
        ({"devices": "4"}, 4, 2),
        ({"devices": [0, 1, 2, 3]}, 4, 2),
        ({"devices": "0,1,2,3,"}, 4, 2),
        ({"devices": 3}, None, None),
        ({"devices": 8}, None, None),
        ({"num_nodes": 3}, None, None),
    ],
)
def test_numbers(monkeypatch, asked, devices, nodes):
    for name, value in {"RUN_ID": "none", "MAX_RESTARTS": "0"}.items():
        monkeypatch.setenv(f"TORCHELASTIC_{name}", value)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    if devices is None:
        with pytest.raises(UserError, match="torchrun has started 8 processes, 4 on this node"):
            as_launched(KEYS | asked)
        return
    keys = as_launched(KEYS | asked)
    assert (keys["devices"], keys["num_nodes"]) == (devices, nodes)
    assert isinstance(keys["strategy"], DDP)


def test_without_torchrun(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert as_launched(KEYS) == KEYS
