import subprocess
import time
from pathlib import Path

import pytest

from gmf_platform.cluster import surroundings

GIT = ("git", "-c", "user.name=a", "-c", "user.email=a@b")


def test_versions_of_what_is_installed(monkeypatch):
    monkeypatch.setattr(surroundings, "_PACKAGES", ("torch", "no_such_package"))
    assert list(surroundings.package_versions()) == ["torch"]


def test_code_of_a_checkout_and_its_changes(tmp_path):
    assert surroundings.code_version(tmp_path) == ""
    (tmp_path / "f").write_text("a")
    for words in (("init", "-q"), ("add", "."), ("commit", "-qm", "a")):
        subprocess.run((*GIT, *words), cwd=tmp_path, check=True)
    clean = surroundings.code_version(tmp_path)
    assert len(clean) == 12
    (tmp_path / "f").write_text("b")
    said = "1 file changed, 1 insertion(+), 1 deletion(-)"
    assert surroundings.code_version(tmp_path) == f"{clean} changed ({said})"


def test_room_for_a_folder_that_is_not_there_yet(tmp_path):
    assert surroundings.free_bytes(tmp_path / "a" / "b") > 0


@pytest.fixture
def job(monkeypatch):
    for name in ("SLURM_JOB_END_TIME", "SLURM_JOB_NUM_NODES", "SLURM_GPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "7")


def test_outside_a_job(job, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID")
    assert surroundings.seconds_to_limit() is None
    assert surroundings.job_nodes() is None
    assert surroundings.gpus_per_node() is None


def test_inside_a_job(job, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "4")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "8")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 100))
    assert (surroundings.job_nodes(), surroundings.gpus_per_node()) == (4, 8)
    assert surroundings.seconds_to_limit() == pytest.approx(100, abs=5)


@pytest.mark.parametrize(("said", "seconds"), [("", None), ("Unknown", None), ("in 100", 100)])
def test_limit_by_squeue(job, monkeypatch, tmp_path, said, seconds):
    """Slurm before 23.02 leaves no variable; without a limit the end is unknown."""
    if said == "in 100":
        said = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 100))
    squeue = Path(tmp_path / "squeue")
    squeue.write_text(f"#!/bin/sh\necho {said}\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert surroundings.seconds_to_limit() == (seconds and pytest.approx(seconds, abs=5))
