import pytest

from gmf_platform.cluster.preflight import (
    Facts,
    Row,
    Verdict,
    check_all_reduce,
    check_cpus,
    check_disk,
    check_equal,
    check_gpus,
    check_open_files,
    check_problems,
    check_processes,
    check_shared_memory,
    check_time,
    table,
)

GIB = 1 << 30
OK, UNKNOWN, WARNING, WRONG = Verdict.OK, Verdict.UNKNOWN, Verdict.WARNING, Verdict.WRONG


def job(nodes=2, per_node=2, **known):
    """The facts of a job's processes."""
    return [Facts(r, f"node{r // per_node + 1}", **known) for r in range(nodes * per_node)]


def processes(facts, *, asked=4, nodes=2, gpus_per_node=2):
    return check_processes(
        facts, asked=asked, launcher="by srun", nodes=nodes, gpus_per_node=gpus_per_node
    )


@pytest.mark.parametrize(
    ("facts", "given", "verdict", "said"),
    [
        (job(), {}, OK, "4 on 2 nodes, started by srun"),
        (job(), {"nodes": None, "gpus_per_node": None}, OK, "4 on 2 nodes"),
        (job(), {"asked": 8}, WRONG, "but trainer.devices x num_nodes is 8"),
        (job(), {"nodes": 3}, WRONG, "but the job has 3 nodes"),
        (job(), {"gpus_per_node": 8}, WRONG, "2 a node, but the job has 8 GPUs a node"),
        # In salloc's shell, or on a machine without Slurm.
        (job(1, 1), {"asked": 2, "nodes": 1}, WARNING, "fit starts 2 itself"),
        (job(1, 1), {"asked": 2, "nodes": None}, WARNING, "fit starts 2 itself"),
        (job(1, 1), {"asked": 4, "nodes": 2}, WRONG, "trainer.devices x num_nodes is 4"),
    ],
)
def test_processes(facts, given, verdict, said):
    row = processes(facts, **given)
    assert row.verdict == verdict
    assert said in row.text


def test_problems_with_the_same_words_are_one():
    facts = job()
    assert check_problems(facts, "data", "is there") == Row("data", OK, "is there")
    for rank in (1, 2, 3):
        facts[rank].problems["data"] = "no folder /data"
    row = check_problems(facts, "data", "is there")
    assert row == Row("data", WRONG, "rank 1 (node1), 2, 3 (node2): no folder /data")


def test_what_must_be_equal():
    facts = job(versions={"torch": "2.11", "code": "abc"})
    assert check_equal(facts) == Row("versions", OK, "torch 2.11, code abc")
    facts[3] = Facts(3, "node2", versions={"torch": "2.12", "code": "abc"})
    row = check_equal(facts)
    assert row.verdict == WRONG
    assert row.text.splitlines() == [
        "torch 2.11: rank 0, 1 (node1), 2 (node2)",
        "torch 2.12: rank 3 (node2)",
    ]


def test_gpus():
    same = job(gpu="A, 40 GiB", driver="1")
    assert check_gpus(same) == Row("devices", OK, "4 x A, 40 GiB, driver 1")
    slower = [*same[:3], Facts(3, "node2", gpu="B, 16 GiB", driver="1")]
    assert check_gpus(slower).verdict == WARNING
    assert "B, 16 GiB, driver 1: rank 3 (node2)" in check_gpus(slower).text
    assert check_gpus([*same[:3], Facts(3, "node2")]).verdict == WRONG


def test_cpus_are_counted_once_on_a_node():
    """torchrun's processes share a node's CPUs, those of srun have their own."""
    assert check_cpus(job(cpus=[0, 1, 2, 3, 4, 5], workers=2)).verdict == OK
    row = check_cpus(job(cpus=[0, 1, 2, 3, 4, 5], workers=3))
    assert row.verdict == WARNING
    assert "node1: 2 processes and 6 that load data, on 6 CPUs" in row.text
    own = [Facts(r, "node1", cpus=[3 * r, 3 * r + 1, 3 * r + 2], workers=2) for r in range(4)]
    assert check_cpus(own).verdict == OK


def test_shared_memory():
    """2 processes a node x 4 workers x 2 batches of 8 MiB."""
    known = {"workers": 4, "shared_memory": 128 << 20}
    assert check_shared_memory(job(**known), batch_bytes=8 << 20).verdict == OK
    row = check_shared_memory(job(**known), batch_bytes=(8 << 20) + 1)
    assert row.verdict == WARNING
    assert "node1: 128.0 MiB free, batches in waiting take about 128.0 MiB" in row.text
    assert check_shared_memory(job(**known), batch_bytes=None).verdict == UNKNOWN
    assert check_shared_memory(job(), batch_bytes=1 << 40).verdict == OK  # no workers


def test_open_files():
    assert check_open_files(job(workers=8, open_files=1024), tensors=40).verdict == OK
    row = check_open_files(job(workers=8, open_files=1024), tensors=72)
    assert row.verdict == WARNING
    assert "1024 allowed, about 1408 needed; ulimit -n 2816" in row.text


def test_disk():
    assert check_disk(free=3 * GIB, taken=0, checkpoint_bytes=GIB).verdict == OK
    row = check_disk(free=3 * GIB - 1, taken=0, checkpoint_bytes=GIB)
    assert row.verdict == WRONG
    assert "3 checkpoints of 1.0 GiB: make room" in row.text
    assert check_disk(free=0, taken=3 * GIB, checkpoint_bytes=GIB).verdict == OK  # on resume


def test_all_reduce():
    row = check_all_reduce(job(), backend="nccl", size=GIB, seconds=0.5)
    assert row.verdict == OK  # a ring of 4 sends 3/2 of the tensor
    assert row.text == "4 processes on 2 nodes, nccl: 1.0 GiB in 500.0 ms, 3.0 GiB/s"
    facts = job()
    facts[2].problems["all-reduce"] = "connection refused"
    assert check_all_reduce(facts, backend="nccl", size=GIB, seconds=0.0).verdict == WRONG


@pytest.mark.parametrize(
    ("left", "limit", "verdict", "said"),
    [
        (None, 3600.0, UNKNOWN, "the job's limit is in 1:00:00; no step of this run was timed"),
        (3000.0, 3600.0, OK, "the run needs 0:50:00 at its speed so far"),
        (3000.0, None, OK, "no time limit"),
        (9000.0, 3600.0, WARNING, "about 3 starts in all"),
    ],
)
def test_time(left, limit, verdict, said):
    row = check_time(seconds_left=left, to_limit=limit)
    assert row.verdict == verdict
    assert said in row.text


def test_table():
    text = table([Row("data", OK, "there"), Row("versions", WRONG, "one\nanother")])
    assert text.splitlines() == [
        "ok         data          there",
        "WRONG      versions      one",
        "                         another",
    ]
