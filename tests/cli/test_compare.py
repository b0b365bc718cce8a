import csv
import fcntl
import json
import multiprocessing
import time
from io import StringIO

import pytest
import yaml
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from gmf_platform.cli.compared_runs import differing_keys, grouped, read_run
from gmf_platform.cli.history import history, read_curves, recorded, status
from gmf_platform.cli.run_directory import RunDirectory
from gmf_platform.errors import ExitCode

CONFIG = {
    "seed_everything": 0,
    "model": {
        "class_path": "tasks.Seg",
        "init_args": {
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1, "betas": 1}}
        },
    },
    "checkpoint": {"monitor": "val/miou", "mode": "max"},
}


def write_events(run, events, begun=0.0):
    """TensorBoard events: (step from 0, tag, value, seconds), or a resume at (step, None, ...)."""
    writer = EventFileWriter(str(run))
    for step, tag, value, seconds in events:
        summary = (
            None if tag is None else Summary(value=[Summary.Value(tag=tag, simple_value=value)])
        )
        session = SessionLog(status=SessionLog.START) if tag is None else None
        event = Event(step=step, wall_time=begun + seconds, summary=summary, session_log=session)
        writer.add_event(event)
    writer.close()


@pytest.fixture
def make_run(tmp_path):
    """Make a run's folder: name, seed, learning rate, and best score."""

    def make(name, *, seed=0, lr=0.1, best=0.5, finished=True):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        config = json.loads(json.dumps(CONFIG))
        config["seed_everything"] = seed
        config["model"]["init_args"]["optimizer"]["init_args"]["lr"] = lr
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        now = time.time()
        curve = [(1, "val/miou", 0.2, 10), (3, "val/miou", best, 20), (5, "val/miou", 0.25, 36)]
        write_events(run, [*curve, (5, "train/loss", 1.5, 36)], begun=now)
        if finished:
            score = {"verb": "fit", "step": 6, "finished": True}
            (run / "metrics.jsonl").write_text(json.dumps(score) + "\n")
        return run

    return make


def test_curves_after_a_resume(tmp_path):
    now = time.time()
    write_events(tmp_path, [(0, "a", 1.0, 0), (1, "a", 2.0, 30), (2, "a", 3.0, 60)], begun=now)
    # The checkpoint was of step 2: what was logged behind it is done again.
    later = [(2, None, None, 0), (2, "a", 7.0, 36)]
    time.sleep(1.1)  # files are named by the second
    write_events(tmp_path, later, begun=now + 5000)
    curves = read_curves(tmp_path)
    assert curves.scalars == {"a": {1: 1.0, 2: 2.0, 3: 7.0}}
    # The writer's own first event is of its making: the hours are those of both processes.
    assert curves.last_step == 3


def test_what_a_run_comes_to(make_run):
    run = read_run(make_run("a"))
    assert run.status == "finished"
    assert run.figures["best val/miou"] == pytest.approx(0.5)
    assert run.figures["last val/miou"] == pytest.approx(0.25)
    assert (run.figures["best step"], run.figures["steps"]) == (4, 6)
    assert run.figures["last train/loss"] == pytest.approx(1.5)
    assert run.figures["hours"] == pytest.approx(36 / 3600, rel=0.1)
    assert run.config["model.optimizer.lr"] == "0.1"


def hold(path, ready):
    lock = (path / "lock").open("a+")
    fcntl.lockf(lock, fcntl.LOCK_EX)
    ready.set()
    time.sleep(60)


def test_status(make_run):
    run = RunDirectory(make_run("a"))
    assert status(run, last_step=6) == "finished"
    assert status(run, last_step=7) == "stopped"  # made longer since
    with recorded(run):
        pass
    assert status(run, last_step=7) == "finished"
    for error, said in ((SystemExit(ExitCode.REQUEUE), "stopped"), (ValueError(), "failed")):
        with pytest.raises(type(error)), recorded(run):
            raise error
        assert status(run, last_step=7) == said
    assert [event["event"] for event in history(run)] == ["start", "end"] * 3
    (run.path / "history.jsonl").open("a").write('{"event": "start", "git": null}\n{"eve')
    assert status(run, last_step=7) == "failed"  # killed
    ready = multiprocessing.Event()
    process = multiprocessing.get_context("fork").Process(target=hold, args=(run.path, ready))
    process.start()
    ready.wait(30)
    try:
        assert status(run, last_step=6) == "running"
    finally:
        process.kill()
        process.join()
    assert status(run, last_step=6) == "finished"


def test_seeds_are_grouped(make_run):
    folders = [make_run("a"), make_run("b", lr=0.2), make_run("a1", seed=1, best=0.6)]
    groups = grouped([read_run(folder) for folder in folders])
    assert [[run.name for run in group.runs] for group in groups] == [["a", "a1"], ["b"]]
    figure = groups[0].figure("best val/miou")
    # Of a sample of two: half the distance times the root of two.
    assert (figure.mean, figure.spread) == (pytest.approx(0.55), pytest.approx(0.1 / 2**0.5))
    assert groups[1].figure("best val/miou").spread is None
    assert groups[1].figure("no such") is None
    assert differing_keys(groups) == ["model.optimizer.lr", "seed_everything"]


def test_keys_of_other_classes_are_left_out(make_run):
    one, other = make_run("a"), make_run("b")
    config = yaml.safe_load((other / "config.yaml").read_text())
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}}
    config["model"]["init_args"]["optimizer"] = sgd
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    groups = grouped([read_run(one), read_run(other)])
    assert differing_keys(groups) == ["model.optimizer.class_path"]


def test_table(gmf, make_run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    make_run("a")
    make_run("a1", seed=1, best=0.6, finished=False)
    make_run("b", lr=0.2)
    result = gmf("compare", "runs/a", "runs/a1", "runs/b")
    assert result.code == 0, result.err
    rows = dict(line.split("  ", 1) for line in result.out.splitlines() if line[0] != " ")
    rows = {key: value.split("  ") for key, value in rows.items()}
    rows = {key: [cell.strip() for cell in cells if cell.strip()] for key, cells in rows.items()}
    assert result.out.splitlines()[0].split() == ["a", "(2", "runs)", "b"]
    assert rows["model.optimizer.lr"] == ["0.1", "0.2"]
    assert rows["seed_everything"] == ["0 1", "0"]
    assert rows["status"] == ["1 finished, 1 stopped", "finished"]
    assert rows["best val/miou"] == ["0.5500 ± 0.0707", "0.5000"]
    assert rows["steps"] == ["6 ± 0", "6"]
    assert "checkpoint.monitor" not in rows  # the same in all


def test_columns_that_do_not_fit_go_below(gmf, make_run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    for i in range(4):
        make_run(f"run_of_a_long_name_{i}", lr=i)
    out = gmf("compare", *(f"runs/run_of_a_long_name_{i}" for i in range(4))).out
    assert max(map(len, out.splitlines())) <= 60
    assert out.count("\nstatus ") == 4


def test_csv(gmf, make_run):
    make_run("a")
    make_run("a1", seed=1, best=0.6)
    make_run("b", lr=0.2)
    rows = list(
        csv.DictReader(StringIO(gmf("compare", "runs/a", "runs/a1", "runs/b", "--csv").out))
    )
    assert [(row["run"], row["seeds"]) for row in rows] == [("a (2 runs)", "2"), ("b", "1")]
    assert float(rows[0]["best val/miou std"]) == pytest.approx(0.1 / 2**0.5)
    assert rows[1]["best val/miou std"] == ""
    assert rows[1]["model.optimizer.lr"] == "0.2"


def test_latex(gmf, make_run):
    make_run("a_1")
    make_run("a_2", seed=1, best=0.6)
    make_run("b", lr=0.2)
    out = gmf("compare", "runs/a_1", "runs/a_2", "runs/b", "--latex").out
    assert out.startswith(r"\begin{tabular}{lllr}")
    assert r"a\_1 (2 runs) & 0.1 & 0 1 & $55.00 \pm 7.07$ \\" in out
    assert r"b & 0.2 & 0 & $50.00$ \\" in out


def test_what_is_no_run(gmf, make_run):
    make_run("a")
    result = gmf("compare", "runs/a", "runs/nothing")
    assert result.code == 2
    assert "runs/nothing" in result.err
    result = gmf("compare", "runs/a", "--metric", "val/mio")
    assert result.code == 2
    assert "has not logged it; it has: val/miou" in result.err


def test_a_run_notes_what_it_came_from(trained, gmf):
    start, end = history(RunDirectory(trained.path))
    assert (start["event"], end["event"], end["outcome"]) == ("start", "end", "finished")
    assert {"time", "git", "version", "host", "command"} <= {*start}
    result = gmf("compare", trained.path)
    assert result.code == 0, result.err
    assert "best val/miou" in result.out
    assert "finished" in result.out
