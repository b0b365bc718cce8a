"""The job scripts as they are, on a real Slurm: trained on two nodes, stopped and killed at will.

Whatever happens to a job, it ends with the weights of the one that nothing happened to, bit by bit.
"""

import json
import os
import random
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml

import gmf_platform
from gmf_platform.cli.main import VERBS

pytestmark = pytest.mark.slow

CODE = Path(gmf_platform.__file__).parents[1]
STEPS = 8
TWO = ["--nodes=2", "--gpus-per-node=1", "--ntasks-per-node=1", "--cpus-per-task=1", "--time=30"]
TRIALS = 20 if "SOAK" in os.environ else 3
PACE = '''
"""Makes steps and validations long enough to be stopped in."""

import time

from lightning.pytorch import Callback


class Pace(Callback):
    def on_train_batch_start(self, *_):
        time.sleep(0.3)

    def on_validation_batch_start(self, *_):
        print("validating", flush=True)
        time.sleep(1)
'''


class Desk:
    """A user's folder, from which jobs are submitted."""

    def __init__(self, slurm, folder, data):
        self.slurm, self.folder = slurm, folder
        self.seconds = 0.0  # that a job takes to which nothing happens
        has_venv = Path(sys.prefix, "bin", "activate").is_file()
        self.environment = {
            "GMF_DATA": str(data),
            "GMF_SITE": "/dev/null",
            "RUN_WITH": f"venv:{sys.prefix}" if has_venv else "path",
            "PREFLIGHT": "0",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        }

    def submit(self, script, *words, options=TWO, cwd=None, **variables):
        path = CODE / "slurm" / script
        return self.slurm.submit(
            *options, path, *words, cwd=cwd or self.folder, env=self.environment | variables
        )

    def train(self, name, *words, **settings):
        config = ("--config", "seg_ade20k", "--config", "small.yaml")
        return self.submit("train.sh", *config, "--name", name, *words, **settings)

    def output(self, job):
        """What the job's own file says."""
        files = list(self.folder.glob(f"gmf-*-{job}.out"))
        return files[0].read_text() if files else ""

    def log(self, job, rank=0):
        """What a process said."""
        files = list(self.folder.glob(f"logs/*-{job}/rank-{rank}.log"))
        return files[0].read_text() if files else ""

    def wait_for(self, job, text):
        """Wait until the first process says something."""
        self.slurm.wait_until(lambda: text in self.log(job))

    def finish(self, job):
        """Wait until the job is over for good, well or not."""
        end = self.slurm.wait(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        assert end["JobState"] == "COMPLETED", self.output(job) + self.log(job, 1)
        return end

    def weights(self, name):
        path = self.folder / "runs" / name / "checkpoints" / "last.ckpt"
        content = torch.load(path, weights_only=True)
        assert content["global_step"] == STEPS
        return content["state_dict"]


@pytest.fixture(scope="module")
def desk(slurm, sample_ade20k, tmp_path_factory):
    folder = tmp_path_factory.mktemp("desk")
    (folder / "pace.py").write_text(PACE)
    content = {
        "init_from": "none",
        "model": {
            "backbone": {
                "embedding_dims": [20, 40, 60, 80],
                "depths": [1, 1, 1, 1],
                "mlp_ratios": [2, 2, 2, 2],
                "drop_path": 0.1,
            },
            "decode_head": {"channels": 16},
            "auxiliary_head": {"channels": 16},
            "optimizer": {"lr": 1e-3},
            "schedule": {"warmup_steps": 2},
        },
        "data": {
            "root": "${oc.env:GMF_DATA,data}/ade20k",
            "global_batch_size": 4,
            "crop_size": 64,
            "scale": [256, 64],
            "num_workers": 1,
        },
        "trainer": {
            "accelerator": "cpu",
            "max_steps": STEPS,
            "val_check_interval": 4,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "callbacks": [{"class_path": "pace.Pace"}],
        },
        "checkpoint": {"every_n_steps": 2},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(content))
    return Desk(slurm, folder, sample_ade20k.parent)


@pytest.fixture(scope="module")
def whole(desk):
    """Weights of the job that nothing happens to; its evaluation waits for it."""
    begun = time.monotonic()
    job = desk.train("whole", PREFLIGHT=str(int("preflight" in VERBS)))
    after = desk.submit(
        "evaluate.sh", "--run", "runs/whole", options=[*TWO, f"--dependency=afterok:{job}"]
    )
    desk.finish(job)
    desk.seconds = time.monotonic() - begun
    desk.finish(after)
    assert "2 nodes (node[1-2]) x 1 tasks" in desk.output(job)
    assert "2 per device x 2 devices" in desk.log(job)
    score, again = (json.loads(desk.log(j).splitlines()[-1]) for j in (job, after))
    assert (again["verb"], again["step"]) == ("validate", score["best_step"])
    assert again["val/miou"] == score["val/miou"]
    return desk.weights("whole")


@pytest.fixture
def same(desk, whole):
    def check(name):
        weights = desk.weights(name)
        assert weights.keys() == whole.keys()
        assert [key for key in whole if not torch.equal(weights[key], whole[key])] == []

    return check


def test_without_slurm(desk, same, call_processes, monkeypatch):
    """Two processes that Slurm knows nothing of come to the same."""
    for name, value in desk.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(desk.folder)
    line = ("fit", "--config", "seg_ade20k", "--config", "small.yaml", "--name", "torchrun")
    results = call_processes(2, *line, cwd=desk.folder)
    assert [result.code for result in results] == [0, 0], results[0].err
    same("torchrun")


def stop_somewhere(desk, job, trial):
    """Send the job Slurm's warning, by one of its ways; the first trials at fixed places."""
    places = {1: "step 2/", 2: "validating"}
    desk.slurm.wait_until(lambda: "start 1" in desk.output(job))
    if trial in places:
        desk.wait_for(job, places[trial])
    else:
        time.sleep(random.Random(trial).uniform(0, desk.seconds) if trial else 3)
    everyone = () if trial in (1, 2) else ("--batch",)  # to the processes, or to the script
    with suppress(subprocess.SubprocessError if trial > 2 else ()):  # it may be over
        desk.slurm.call("scancel", *everyone, "--signal=USR1", job)
        if trial % 2:
            desk.slurm.call("scancel", "--signal=TERM", job)


@pytest.mark.parametrize("trial", range(TRIALS))
def test_requeued_by_a_signal(desk, same, trial, record_property):
    """In imports, in training twice in a row, in validation; then anywhere."""
    name = f"signal{trial}"
    begun = time.monotonic()
    job = desk.train(name)
    stop_somewhere(desk, job, trial)
    end = desk.finish(job)
    record_property("seconds", time.monotonic() - begun)
    assert end["Restarts"] == "1" or trial > 2
    same(name)
    validations = [line for line in desk.log(job).splitlines() if line.startswith("validation at")]
    assert len(validations) == 2, validations


def test_a_warning_is_never_forgotten(desk, slurm, tmp_path):
    """Whether it comes before, while or after srun starts the processes; here no Python's."""
    shim = tmp_path / "python"
    shim.write_text(
        "#!/bin/bash\ntrap 'exit 75' USR1\n"
        "((${SLURM_RESTART_COUNT:-0})) || for _ in {1..600}; do sleep 0.1; done\n"
    )
    shim.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    jobs = []
    for trial in range(20):
        jobs.append(desk.submit("train.sh", cwd=tmp_path, RUN_WITH="path", PATH=path))
        output = tmp_path / f"gmf-train-{jobs[-1]}.out"
        slurm.wait_until(lambda: output.is_file() and "start 1" in output.read_text())  # noqa: B023
        time.sleep(trial * 0.02)
        slurm.call("scancel", "--batch", "--signal=USR1", jobs[-1])
    for job in jobs:
        end = slurm.wait(job, "COMPLETED", "FAILED")
        assert (end["JobState"], end["Restarts"]) == ("COMPLETED", "1")


def test_unpacked_again_after_a_requeue(desk, same, slurm, sample_ade20k):
    with tarfile.open(desk.folder / "ade.tar", "w") as archive:
        archive.add(sample_ade20k, "ade20k")
    job = desk.train("staged", GMF_DATA="/nowhere", STAGE="ade.tar", STAGE_TO=str(slurm.disk))
    desk.wait_for(job, "step 3/")
    slurm.call("scancel", "--batch", "--signal=USR1", job)
    desk.finish(job)
    said = desk.output(job)
    for node in ("node1", "node2"):
        assert said.count(f"{node}: ade.tar is unpacked in {slurm.disk}/gmf-{job}") == 2, said
        assert not any((slurm.root / "disks" / node).iterdir())
    same("staged")


def test_requeued_by_hand(desk, same, slurm):
    job = desk.train("hand")
    desk.wait_for(job, "step 3/")
    slurm.call("scontrol", "requeue", job)
    assert desk.finish(job)["Restarts"] == "1"
    same("hand")


def test_preempted(desk, same, slurm):
    """A job of more weight takes the nodes; the processes are told, and save."""
    job = desk.train("preempted")
    desk.wait_for(job, "step 3/")
    slurm.call("sbatch", "-p", "urgent", "-N4", "--exclusive", "-o", "/dev/null", "--wrap", "true")
    assert int(desk.finish(job)["Restarts"]) >= 1
    assert "SIGTERM: saved at step" in desk.log(job)
    same("preempted")


def test_power_failure(desk, same, slurm):
    """Slurm notices after ten seconds, and gives the job two other nodes."""
    job = desk.train("power")
    desk.wait_for(job, "step 5/")
    slurm.fail_node("node2")
    end = desk.finish(job)
    slurm.start_node("node2")
    assert end["Restarts"] == "1"
    assert "node2" not in desk.output(job).rpartition("start 2")[2].splitlines()[0]
    same("power")
    slurm.wait_until(lambda: "idle" in slurm.call("sinfo", "-h", "-n", "node2", "-o", "%t"))


def test_a_killed_process(desk, same, slurm):
    """The others say which one it was; the job fails, and the same command goes on."""
    job = desk.train("killed")
    desk.wait_for(job, "step 5/")
    os.kill(process_of(job, rank=1), 9)
    assert slurm.wait(job, "FAILED")["ExitCode"] != "0:0"
    assert "rank 1 (process" in desk.log(job)
    assert "on node2) is dead" in desk.log(job)
    again = desk.train("killed")
    desk.finish(again)
    assert "going on at step 4 of 8" in desk.log(again)
    same("killed")


def process_of(job, *, rank):
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            is_python = b"gmf_platform" in (folder / "cmdline").read_bytes()
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            parents_too = b"gmf_platform" in Path(f"/proc/{parent}/cmdline").read_bytes()
        except OSError:
            continue
        wanted = {f"SLURM_JOB_ID={job}".encode(), f"SLURM_PROCID={rank}".encode()}
        if is_python and not parents_too and wanted < set(variables):
            return int(folder.name)
    raise AssertionError(f"no process of rank {rank}")


def test_a_chain_where_requeue_is_forbidden(desk, same, slurm):
    first = desk.train("chain", options=[*TWO, "--no-requeue"], CHAIN="2")
    desk.wait_for(first, "step 3/")
    slurm.call("scancel", "--batch", "--signal=USR1", first)
    assert slurm.wait(first, "FAILED")["ExitCode"] == "75:0"
    second = (desk.folder / "logs" / f"gmf-train-{first}" / "next").read_text().strip()
    desk.finish(second)
    same("chain")
    third = (desk.folder / "logs" / f"gmf-train-{second}" / "next").read_text().strip()
    slurm.wait(third, "CANCELLED")  # nothing is left to do


def test_a_sweep(desk, slurm):
    line = "--config seg_ade20k --config small.yaml --trainer.max_steps 1 --name"
    (desk.folder / "sweep.txt").write_text(f"# two\n{line} sweep0\n\n{line} 'sweep1'\n")
    words = ("--trainer.limit_val_batches", "1")
    job = desk.submit("sweep.sh", "sweep.txt", *words, options=[*TWO, "--array=0-2%2"])
    for index in (0, 1):
        state = slurm.wait(f"{job}_{index}", "COMPLETED", "FAILED")["JobState"]
        assert state == "COMPLETED", (desk.folder / f"gmf-sweep-{job}_{index}.out").read_text()
        score = (desk.folder / "runs" / f"sweep{index}" / "metrics.jsonl").read_text()
        assert json.loads(score)["step"] == 1
    assert slurm.wait(f"{job}_2", "FAILED")["ExitCode"] == "2:0"
    said = (desk.folder / f"gmf-sweep-{job}_2.out").read_text()
    assert "--array: sweep.txt has lines 0 to 1" in said


def test_from_any_folder_with_no_arguments(desk, slurm, tmp_path):
    """It would train on ADE20K, which is not there; that is said where the user looks."""
    shim = tmp_path / "apptainer"
    shim.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/words\nPATH= exec {sys.executable} "${{@:9}}"\n'
    )
    shim.write_text(shim.read_text().replace("/bin/sh", "/bin/bash"))
    shim.chmod(0o755)
    away = tmp_path / "away"
    away.mkdir()
    job = desk.submit(
        "train.sh",
        cwd=away,
        RUN_WITH="apptainer:gmf.sif",
        GMF_DATA=str(away),
        PATH=f"{tmp_path}:{os.environ['PATH']}",
    )
    assert slurm.wait(job, "FAILED", "COMPLETED")["ExitCode"] == "2:0"
    said = (away / f"gmf-train-{job}.out").read_text()
    assert f"{away}/ADEChallengeData2016" in said
    words = (tmp_path / "words").read_text()
    assert words.startswith(f"exec --nv --bind {away},{CODE},{away},")
    assert words.endswith(f"--pwd {away} gmf.sif python -m gmf_platform fit --config seg_ade20k\n")


def test_tasks_and_gpus_differ(desk, slurm, tmp_path):
    options = [*TWO, "--gpus-per-node=2"]
    job = desk.submit("train.sh", options=options, cwd=tmp_path)
    assert slurm.wait(job, "FAILED")["ExitCode"] == "2:0"
    said = (tmp_path / f"gmf-train-{job}.out").read_text()
    assert "2 GPUs a node and 1 tasks: add --ntasks-per-node 2" in said


@pytest.mark.parametrize("script", ["train.sh", "multitask.sh", "sweep.sh", "evaluate.sh"])
def test_four_nodes_of_eight_gpus(slurm, script):
    line = ("sbatch", "--test-only", "--nodes=4", CODE / "slurm" / script)
    slurm.call(*line)
    with pytest.raises(subprocess.SubprocessError, match="configuration is not available"):
        slurm.call(*line[:-1], "--nodes=5", line[-1])


def test_started_once_in_an_allocation(desk, slurm):
    """It starts its own processes; as many srun tasks as were not asked for are an error."""
    fit = f"{sys.executable} -m gmf_platform fit --config seg_ade20k --config small.yaml".split()
    words = ("--name", "alone", "--trainer.max_steps", "1", "--trainer.limit_val_batches", "1")
    env = desk.environment | {"PYTHONPATH": f"{CODE}:{desk.environment['PYTHONPATH']}"}
    line = ("srun", "--gpus-per-node=2", "-N1", "bash", "-c", '"$@" 2>&1', "-")
    said = slurm.call(
        *line, *fit, *words, "--trainer.devices", "2", cwd=desk.folder, env=env, timeout=300
    )
    assert "started once: takes 2 devices of this node, node1" in said
    assert "x 2 devices" in said
    assert said.count('"verb": "fit"') == 1
    line = ("srun", "-n2", *fit, "--trainer.devices", "1")
    with pytest.raises(subprocess.SubprocessError, match="srun has started 2 processes"):
        slurm.call(*line, cwd=desk.folder, env=env, timeout=300)
