import csv
import shutil

import numpy as np
import pytest
from PIL import Image

from gmf_platform.cli.show import read_worst
from gmf_platform.errors import UserError


@pytest.fixture(scope="session")
def scored(trained, call, tmp_path_factory):
    """A copy of the finished run, with the scores of its validation images."""
    cwd = tmp_path_factory.mktemp("scored")
    run = shutil.copytree(trained.path, cwd / "runs" / "done")
    result = call("validate", "--run", run, cwd=cwd)
    assert result.code == 0, result.err
    return run


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_validate_keeps_the_scores_of_each_image(scored, sample_ade20k):
    rows = rows_of(scored / "validate_per_sample.csv")
    assert [row["index"] for row in rows] == [str(i) for i in range(6)]
    images = sorted((sample_ade20k / "images" / "validation").iterdir())
    assert [row["path"] for row in rows] == [str(path) for path in images]
    names = {row["worst_class"] for row in rows}
    assert all(0 <= float(row["iou"]) <= 1 for row in rows)
    assert "" not in names


def test_sheet_of_a_run(scored, gmf):
    result = gmf("show", scored, "--worst", 3)
    assert result.code == 0, result.err
    rows = sorted(rows_of(scored / "validate_per_sample.csv"), key=lambda row: float(row["iou"]))
    shown = [line.split("  ")[1] for line in result.out.splitlines()[:3]]
    assert shown == [row["path"] for row in rows[:3]]
    sheet = np.asarray(Image.open(scored / "validate_worst.png"))
    assert sheet.shape[1] == 4 * 320
    # The truth is painted over the pictures: they are not the files themselves.
    plain = scored.parent / "plain.csv"
    shutil.copy(scored / "validate_per_sample.csv", plain)
    assert gmf("show", plain, "--worst", 3).code == 0
    alone = np.asarray(Image.open(scored.parent / "plain_worst.png"))
    assert (sheet[:320, :960] != alone[:320, :960]).any()


def test_of_several_tables_the_newest(scored, gmf, tmp_path):
    run = shutil.copytree(scored, tmp_path / "run")
    older = run / "validate_per_sample.csv"
    newest = shutil.copyfile(older, run / "test_per_sample.csv")
    result = gmf("show", run, "--worst", 1)
    assert result.code == 0, result.err
    assert result.out.splitlines()[-2:] == [f"scores       {newest}", f"others       {older}"]


def test_own_sheet_is_not_overwritten(scored, gmf, tmp_path):
    words = ("show", scored, "--worst", 1, "--sheet", "mine.png")
    assert gmf(*words).code == 0
    result = gmf(*words)
    assert result.code == 2
    assert "--overwrite" in result.err
    assert gmf(*words, "--overwrite").code == 0


def test_other_images_than_then(scored, gmf, tmp_path):
    run = shutil.copytree(scored, tmp_path / "run")
    table = run / "validate_per_sample.csv"
    table.write_text(table.read_text().replace(".jpg", "x.jpg"))
    result = gmf("show", run)
    assert result.code == 2
    assert "the data set has changed; validate again" in result.err


TABLE = (
    "index,path,truth,predicted,probability,loss\n0,a,x,y,0.5,0.7\n1,b,x,x,0.9,0.1\n2,c,y,x,,3\n"
)


def test_order(tmp_path):
    (tmp_path / "t.csv").write_text(TABLE)
    worst = read_worst(tmp_path / "t.csv", number=9)
    assert [(one.path, one.caption) for one in worst] == [
        ("a", "0.500 x > y"),
        ("b", "0.900 x > x"),
    ]
    assert [one.path for one in read_worst(tmp_path / "t.csv", number=2, by="loss")] == ["c", "a"]
    assert read_worst(tmp_path / "t.csv", number=1)[0].index == 0
    with pytest.raises(UserError, match="no such column"):
        read_worst(tmp_path / "t.csv", number=1, by="losss")
    with pytest.raises(UserError, match="holds no numbers"):
        read_worst(tmp_path / "t.csv", number=1, by="truth")
    (tmp_path / "u.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="is no table of single images' scores"):
        read_worst(tmp_path / "u.csv", number=1)


def test_run_without_scores(gmf, trained):
    result = gmf("show", trained.path)
    assert result.code == 2
    assert f"python -m gmf_platform validate --run {trained.path}" in result.err
    assert gmf("show", "nothing").code == 2
    assert gmf("show", trained.path, "--worst", 0).code == 2


def test_two_processes_write_the_same_table(scored, call_processes, tmp_path):
    run = shutil.copytree(scored, tmp_path / "run")
    (run / "validate_per_sample.csv").unlink()
    words = ("--trainer.accelerator", "cpu", "--trainer.devices", 2, "--trainer.strategy", "ddp")
    results = call_processes(2, "validate", "--run", run, *words, cwd=tmp_path)
    assert [result.code for result in results] == [0, 0], results[0].err
    table = (run / "validate_per_sample.csv").read_text()
    assert table == (scored / "validate_per_sample.csv").read_text()
