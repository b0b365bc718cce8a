"""On one process and on two, with what can be wrong on one of them alone."""

import re
import shutil
import time

import pytest
import torch.distributed as dist

from gmf_platform.cli import preflight
from gmf_platform.cluster import meeting, surroundings
from gmf_platform.cluster.meeting import Meeting, Place

CPU = ("--trainer.accelerator", "cpu")


def rows(text):
    """The table: name -> (verdict, text)."""
    found = re.findall(
        r"^(ok|not known|warning|WRONG) +(.{13}) (.*(?:\n {25}.*)*)", text, re.MULTILINE
    )
    return {name.strip(): (verdict, said) for verdict, name, said in found}


@pytest.fixture
def both(call_processes, base, tmp_path):
    """Run it in two processes: ``both("--KEY", "VALUE")`` gives the results."""

    def run(*words, processes=2):
        line = ("preflight", *base, *CPU, "--name", "a", *words)
        return call_processes(processes, *line, cwd=tmp_path)

    return run


def test_one_process(gmf, base, tmp_path):
    result = gmf("preflight", *base, *CPU, "--name", "a")
    assert result.code == 0, result.out + result.err
    found = rows(result.out)
    names = ["processes", "config", "data", "weights", "versions", "devices", "run folder", "CPUs"]
    assert list(found) == [*names, "disk", "/dev/shm", "open files", "time"]
    assert found["processes"] == ("ok", "1 on 1 nodes, started by hand")
    assert re.search(r"torch \S+, lightning \S+,.* config \w{8}, data", found["versions"][1])
    assert found["time"][0] == "not known"
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"]
    assert list((tmp_path / "runs").iterdir()) == []


def test_two_processes(both, tmp_path):
    first, second = both()
    assert (first.code, second.code) == (0, 0), first.out + first.err + second.err
    assert second.out == ""
    found = rows(first.out)
    assert found["processes"] == ("ok", "2 on 1 nodes, started by torchrun")
    assert re.match(
        r"2 processes on 1 nodes, gloo: 696\.\d KiB in \d+\.\d ms", found["all-reduce"][1]
    )
    assert list((tmp_path / "runs").iterdir()) == []


def test_data_is_missing_on_one(both, sample_ade20k, tmp_path):
    shutil.copytree(sample_ade20k, tmp_path / "data-0")
    first, second = both("--data.root", f"{tmp_path}/data-${{oc.env:RANK}}")
    assert (first.code, second.code) == (2, 2)
    found = rows(first.out)
    assert found["data"][0] == "WRONG"
    assert re.match(rf"rank 1 \(\S+\): .*{tmp_path}/data-1", found["data"][1])
    assert found["all-reduce"][0] == "ok"  # all else is looked at nevertheless


def test_data_differ(both, sample_ade20k, tmp_path):
    for rank in (0, 1):
        shutil.copytree(sample_ade20k, tmp_path / f"data-{rank}")
    shutil.rmtree(tmp_path / "data-1" / "images")
    shutil.copytree(sample_ade20k / "images", tmp_path / "data-1" / "images" / "images")
    first, _ = both("--data.root", f"{tmp_path}/data-${{oc.env:RANK}}")
    assert rows(first.out)["versions"][0] == "WRONG"
    assert re.search(r"data \w+ \(\d+ names\): rank 1 \(", rows(first.out)["versions"][1])


def test_another_number_of_processes(both):
    first, second = both("--trainer.devices", "3")
    assert (first.code, second.code) == (2, 2)
    assert rows(first.out)["config"][0] == "WRONG"
    assert "the config asks for 3 on 1 nodes" in rows(first.out)["config"][1]


def test_one_never_comes(both, monkeypatch):
    monkeypatch.setattr(meeting, "own_place", lambda: Place(0, 2, 0, "by torchrun"))
    begun = time.monotonic()
    (first,) = both("--wait", "3", processes=1)
    assert first.code == 2
    assert "rank 1 of 2 has not come within 3 s" in rows(first.out)["processes"][1]
    assert time.monotonic() - begun < 60


def test_the_first_never_comes(both, monkeypatch):
    monkeypatch.setattr(meeting, "own_place", lambda: Place(1, 2, 1, "by torchrun"))
    (second,) = both("--wait", "3", processes=1)
    assert (second.code, second.out) == (2, "")
    assert "rank 0 cannot be reached at 127.0.0.1:" in second.err


def test_folder_that_cannot_be_written(gmf, base, tmp_path):
    (tmp_path / "file").touch()
    result = gmf("preflight", *base, *CPU, "--runs", "file/runs")
    assert result.code == 2
    assert rows(result.out)["run folder"][0] == "WRONG"
    assert "cannot be written: Not a directory" in rows(result.out)["run folder"][1]


def test_folder_that_is_not_shared(run_processes, monkeypatch, tmp_path):
    """Each process writes into a folder of its own, as on nodes without a common disk."""
    monkeypatch.setattr(preflight, "_LAG", 1.0)
    hosts = ["node1", "node2"]

    def exchange(rank):
        together = Meeting(Place(), seconds=60)
        together.place = Place(rank, 2, rank)
        group = dist.distributed_c10d._get_default_store()
        together.store = dist.PrefixStore("one", group)
        shared = preflight._exchange_files(together, tmp_path / "all", hosts)
        together.store = dist.PrefixStore("own", group)
        return shared, preflight._exchange_files(together, tmp_path / str(rank), hosts)

    (shared, first), (_, second) = run_processes(exchange, 2)
    assert shared is None
    assert f"the file that rank 1 on node2 wrote into {tmp_path}/0 is not there after 1 s" in first
    assert "rank 0 on node1" in second
    assert not (tmp_path / "all").exists()


def test_disk_is_too_small(gmf, base, monkeypatch):
    """0.18 M parameters, their two moments and the norms' statistics, three times: 6.7 MB."""
    monkeypatch.setattr(surroundings, "free_bytes", lambda folder: 7_000_000)
    assert gmf("preflight", *base, *CPU, "--name", "a").code == 0
    monkeypatch.setattr(surroundings, "free_bytes", lambda folder: 6_000_000)
    result = gmf("preflight", *base, *CPU, "--name", "a")
    assert result.code == 2
    assert rows(result.out)["disk"][0] == "WRONG"


def test_what_a_run_has_shown(gmf, base, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 3600))
    log = tmp_path / "runs" / "a" / "log.txt"
    log.parent.mkdir(parents=True)
    line = "2026-01-01 00:00:00 step {}/1000  loss 1.0  lr 1.00e-04  memory 0.7 GiB  left {}\n"
    log.write_text(line.format(50, "5 days, 0:00:00") + line.format(100, "1 day, 2:00:03"))
    result = gmf("preflight", *base, *CPU, "--name", "a")
    verdict, said = rows(result.out)["time"]
    assert verdict == "warning"
    assert "the run needs 1 day, 2:00:03" in said
    assert re.search(r"the job's limit is in (1:00:00|0:5\d:\d\d)", said)
    assert log.exists()  # the run's folder is as it was
    assert list(log.parent.iterdir()) == [log]


def test_takes_the_command_line_of_fit(gmf, base):
    words = ("--fresh", "--runs", "r", "--allow-partial", "--trainer.max_steps", "3")
    assert gmf("preflight", *base, *CPU, *words).code == 0


def test_a_key_that_is_not_known(gmf, base):
    result = gmf("preflight", *base, *CPU, "--data.croop_size", "64")
    assert result.code == 2
    assert "did you mean 'crop_size'" in rows(result.out)["config"][1]
