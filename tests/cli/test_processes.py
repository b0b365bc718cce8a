"""Two real processes on gloo, from the command line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

ALONE = ("--trainer.accelerator", "cpu", "--data.num_workers", "0")
TWO = (*ALONE, "--trainer.devices", "2")


@pytest.fixture
def start(tmp_path, base):
    """Start a command line as a user would, in the test's folder."""

    def run(verb, *words):
        command = [sys.executable, "-m", "gmf_platform", verb, *map(str, words)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    return run


def wait_for(process, text, seconds=120):
    """Read lines until one holds the text."""
    end = time.monotonic() + seconds
    seen = []
    while time.monotonic() < end:
        line = process.stdout.readline()
        seen.append(line)
        if text in line:
            return
        if not line and process.poll() is not None:
            break
    raise AssertionError("".join(seen))


@pytest.mark.slow
def test_two_processes_train_stop_and_go_on(start, base, tmp_path):
    words = [*base, "--name", "two", *TWO]
    process = start("fit", *words, "--trainer.max_steps", "500", "--trainer.log_every_n_steps", "1")
    wait_for(process, "step 5/500")
    process.send_signal(signal.SIGTERM)  # to the first process alone: both must leave
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 75, out
    assert "saved at step" in out
    stopped = int(out.split("saved at step ")[1].split(";")[0])

    process = start("fit", *words, "--trainer.max_steps", str(stopped + 3))
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out
    assert f"going on at step {stopped} of {stopped + 3}" in out
    score = json.loads(out.splitlines()[-1])
    assert score["step"] == stopped + 3
    assert out.count('"verb": "fit"') == 1  # by the first process alone


@pytest.mark.slow
def test_exact_scores_and_fewer_images_than_processes(start, trained, sample_ade20k, tmp_path):
    run = shutil.copytree(trained.best.parent.parent, tmp_path / "run")
    lines = []
    for words in (ALONE, TWO):
        out, _ = start("validate", "--run", run, *words).communicate(timeout=200)
        lines.append(json.loads(next(x for x in out.splitlines() if x.startswith('{"verb"'))))
    assert lines[0] == lines[1]

    image = min((sample_ade20k / "images" / "validation").glob("*.jpg"))
    process = start("predict", "--run", run, *TWO, "--images", image, "--output", "out")
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out
    assert (tmp_path / "out" / f"{image.stem}.png").is_file()
    assert out.count("1 image:") == 1
