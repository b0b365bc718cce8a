"""What docs/compatibility.md promises of files that earlier releases wrote (write_release.py)."""

import json
import shutil

import numpy as np
import pytest
from write_release import RELEASES, SETS, SINGLE, keys, said

import gmf_platform
from datamodules.sample_data import write_sample

FOLDERS = sorted(RELEASES.iterdir())


@pytest.fixture(params=FOLDERS, ids=[folder.name for folder in FOLDERS], scope="module")
def release(request):
    return request.param


def expected(release):
    return json.loads((release / "expected.json").read_text())


def alike(now, before):
    """Whether a model says now what it said before."""
    match before:
        case {"seg": _}:
            return now.keys() == before.keys() and all(
                alike(now[task], before[task]) for task in before
            )
        case dict():
            return now == pytest.approx(before, abs=1e-4)
        case [[str(), *_], *_]:  # in any order: scores are close
            return len(now) == len(before) and all(
                any(
                    name == found[0]
                    and score == pytest.approx(found[1], abs=1e-4)
                    and box == pytest.approx(found[2], abs=0.1)
                    for found in now
                )
                for name, score, box in before
            )
        case _:
            return (np.array(now) == np.array(before)).mean() > 0.999


@pytest.mark.parametrize("config", SINGLE)
def test_models_say_what_they_said(release, config):
    model = gmf_platform.load(release / f"{config}.safetensors", device="cpu")
    result = model.predict(next(release.glob("picture.*")))
    assert alike(said(result), expected(release)[config])


@pytest.fixture(scope="module")
def folder(release, tmp_path_factory):
    """Where the run of a release lies, with its data."""
    folder = tmp_path_factory.mktemp("release")
    for name in SETS:
        write_sample(name, folder / "data" / name, train=12, val=6, size=96, seed=0)
    shutil.copytree(release / "run", folder / "runs" / "multitask")
    shutil.copy(release / "multitask.yaml", folder)
    return folder


def test_a_run_predicts_and_is_scored(release, folder, call):
    model = gmf_platform.load(folder / "runs" / "multitask", device="cpu")
    found = model.predict(next(release.glob("picture.*")))
    now = {task: said(result) for task, result in found.items()}
    assert alike(now, expected(release)["multitask"])
    result = call("validate", "--run", "runs/multitask", cwd=folder)
    assert result.code == 0, result.err
    scores = json.loads(result.out.splitlines()[-1])
    assert {"val/cls/top1", "val/seg/miou", "val/score"} <= scores.keys()


def test_a_run_goes_on(release, folder, call):
    words = ("--config", "multitask", "--config", "multitask.yaml", "--name", "multitask")
    result = call("fit", *words, "--trainer.max_steps", "4", cwd=folder)
    assert result.code == 0, result.err
    assert "going on at step 2 of 4" in result.out


def test_no_key_is_gone(release):
    """One that is breaks the configs and checkpoints of people: it needs a line in CHANGELOG.md."""
    now = keys()
    for path, names in json.loads((release / "keys.json").read_text()).items():
        assert set(names) <= set(now[path]), path


def test_there_is_a_release():
    assert FOLDERS
