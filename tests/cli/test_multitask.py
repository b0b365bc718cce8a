"""Joint training from the command line: a run, its scores, kill and resume, several processes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from gmf_platform.models.weights import read_state_dict

STEPS = 6
TASKS = ["cls", "det", "seg"]


@pytest.fixture(scope="module")
def small(small_multitask):
    return small_multitask


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def fitted(small, call, folder):
    """A run by name and words, made once."""
    made = {}

    def find(name, *words):
        if name not in made:
            made[name] = call("fit", *small, "--name", name, *words, cwd=folder)
            assert made[name].code == 0, made[name].err
        return folder / "runs" / name

    return find


@pytest.fixture(scope="module")
def whole(fitted):
    """The run that all others are compared with."""
    return fitted("whole")


def losses_of(curves):
    """Curves of the losses by tag."""
    return {
        tag: curve for tag, curve in curves.items() if tag.startswith("train/") and "/loss" in tag
    }


def test_a_run_logs_each_task(whole, scalars):
    curves = scalars(whole)
    assert {tag.split("/")[1] for tag in curves if tag.startswith("train/")} == {
        *TASKS,
        "loss",
        "cosine",
    }
    names = ("cls/loss_class", "det/loss_box", "seg/loss_auxiliary", "seg/gradient_norm")
    for name in (*names, "cosine/cls_det", "det/weight", "loss"):
        assert [step for step, _ in curves[f"train/{name}"]] == list(range(STEPS)), name
    total = sum(curve[0][1] for tag, curve in losses_of(curves).items() if tag != "train/loss")
    assert curves["train/loss"][0][1] == pytest.approx(total, rel=1e-5)
    assert curves["train/det/samples"][-1][1] == 4 * STEPS
    assert curves["train/cls/epochs"][-1][1] == pytest.approx(4 * STEPS / 16)
    main = [curves[f"val/{name}"][-1][1] for name in ("cls/top1", "det/box_ap", "seg/miou")]
    assert curves["val/score"][-1][1] == pytest.approx(sum(main) / 3)


def test_the_backbone_is_in_the_checkpoint_once(whole):
    names = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    parts = {name.split(".")[1] for name in names}
    assert parts == {"backbone", *TASKS}
    assert all(name.startswith("model.backbone.") for name in names if "backbone" in name)


def test_a_picture_of_each_task(whole):
    names = {path.name for path in (whole / "pictures").iterdir()}
    assert names == {f"validation_{task}.png" for task in TASKS}


@pytest.mark.parametrize("average", ["null", "0.5"])
def test_validate_gives_what_fit_has_logged(average, fitted, call, folder, scalars):
    """With the statistics that fit took anew, of the weights or of their moving average."""
    run = fitted("whole") if average == "null" else fitted("averaged", "--average.decay", average)
    result = call("validate", "--run", run, cwd=folder)
    assert result.code == 0, result.err
    own, joint = (json.loads(line) for line in result.out.splitlines()[-2:])
    curves = scalars(run)
    best = own["step"] - 1
    for name in ("val/score", "val/cls/top1", "val/cls/loss", "val/seg/miou"):
        assert own[name] == pytest.approx(dict(curves[name])[best], abs=1e-6)
    assert "det\nclass" in result.err
    assert (own["size"], joint["size"]) == ("of each task", "96 x 64")
    assert own.keys() == joint.keys()
    kept = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["size"] for line in kept if line.get("verb") == "validate"][-2:] == [
        own["size"],
        joint["size"],
    ]


@pytest.mark.slow
def test_export_writes_the_tasks_that_are_named(whole, call, folder, tmp_path):
    out = tmp_path / "out"
    result = call("export", whole, out, "--task", "pose", cwd=folder)
    assert result.code == 2
    assert "--task pose: there is no such task; there are cls, det, seg" in result.err
    result = call("export", whole, out, "--task", "cls", cwd=folder)
    assert result.code == 0, result.err
    assert [path.name for path in out.iterdir()] == ["cls"]
    assert {path.name for path in (out / "cls").iterdir()} == {"README.md", "model.onnx", "run.py"}
    assert "top1" in (out / "cls" / "README.md").read_text()


def test_predict_writes_what_each_task_says(whole, call, folder, sample_ade20k, tmp_path):
    """And says what the task says alone, of the image at the joint size."""
    images = sample_ade20k / "images" / "validation"
    words = ("predict", "--run", whole, "--images", images, "--output", tmp_path / "out")
    result = call(*words, cwd=folder)
    assert result.code == 0, result.err
    names = sorted(path.stem for path in images.iterdir())
    written = {task: {path.name for path in (tmp_path / "out" / task).iterdir()} for task in TASKS}
    overlays = {f"{name}_overlay.jpg" for name in names}
    tables = {"predictions.json", "classes.json"}
    assert written["cls"] == overlays | tables | {"predictions.csv"}
    assert written["det"] == overlays | tables
    assert written["seg"] == overlays | tables | {f"{name}.png" for name in names}
    legends = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert {task: len(legend) for task, legend in legends.items()} == {
        "cls": 5,
        "det": 5,
        "seg": 8,
    }
    found = json.loads((tmp_path / "out" / "det" / "predictions.json").read_text())
    assert {row["file_name"] for row in found} <= {str(images / f"{name}.jpg") for name in names}
    again = call(*words, cwd=folder)
    assert again.code == 2
    assert "--overwrite" in again.err


def test_statistics_per_task_say_what_they_cost(small, call, folder, sample_ade20k, tmp_path):
    said = "norm_statistics is per_task: prediction and validation run the backbone once for each"
    words = (
        "--name",
        "per_task",
        "--model.norm_statistics",
        "per_task",
        "--trainer.max_steps",
        "1",
    )
    fitted = call("fit", *small, *words, cwd=folder)
    assert fitted.code == 0, fitted.err
    assert said in fitted.out
    images = sample_ade20k / "images" / "validation"
    words = (
        "--run",
        folder / "runs" / "per_task",
        "--images",
        images,
        "--output",
        tmp_path / "out",
    )
    predicted = call("predict", *words, cwd=folder)
    assert predicted.code == 0, predicted.err
    assert said in predicted.out


STOPPER = """
import os, signal
from lightning.pytorch import Callback

class Stopper(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if os.environ.get("STOP_AT") == str(trainer.global_step):
            os.kill(os.getpid(), getattr(signal, os.environ["STOP_BY"]))
"""


@pytest.mark.parametrize("turns", ["null", "{class_path: gmf_platform.distributed.turns.BySize}"])
def test_killed_and_resumed(turns, fitted, small, folder, call, scalars, monkeypatch):
    """Tasks of 16 and 12 images are in different epochs when the process dies with kill -9."""
    (folder / "stopper.py").write_text(STOPPER)
    monkeypatch.syspath_prepend(folder)
    stopping = ("--trainer.callbacks", "[{class_path: stopper.Stopper}]")
    words = (*stopping, "--data.turns", turns)
    name = "turns" if turns != "null" else "all"
    expected = scalars(fitted(f"{name}_whole", *words))
    line = ("fit", *small, *words, "--name", f"{name}_killed")
    process = subprocess.run(
        [sys.executable, "-m", "gmf_platform", *map(str, line)],
        cwd=folder,
        env=os.environ | {"STOP_AT": "5", "STOP_BY": "SIGKILL", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    time.sleep(1)  # event files are ordered by the second they were begun in
    result = call(*line, cwd=folder)
    assert result.code == 0, result.err
    assert "going on at step 4 of 6" in result.out
    got = scalars(folder / "runs" / f"{name}_killed")
    wanted = [tag for tag in expected if tag.startswith(("train/", "val/"))]
    assert len(wanted) > 20
    for tag in wanted:
        assert got[tag] == expected[tag], tag
    one, other = (
        read_state_dict(folder / "runs" / f"{name}_{kind}" / "checkpoints" / "last.ckpt")
        for kind in ("whole", "killed")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_subset_and_the_roots_are_for_the_command_line(small, call, folder, sample_ade20k):
    words = ("--model.tasks.det", "null", "--data.tasks.det", "null", "--data.tasks.seg.root")
    result = call("fit", *small, *words, sample_ade20k, "--dry-run", cwd=folder)
    assert result.code == 0, result.err
    assert "cls: " in result.out
    assert f"seg: {sample_ade20k}" in result.out
    assert "det:" not in result.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model.tasks.det", "null"), "data.tasks.det: nothing is trained on it"),
        (("--data.tasks.det", "null"), "model.tasks.det: has no data"),
        (("--model.balancing.weights", "{seg: 0.0}"), "model.balancing.weights.seg: 0.0 is not"),
        (("--model.balancing.weights", "{sky: 1.0}"), "model.balancing.weights.sky: there is no"),
        (("--data.tasks.seg.global_batch_size", "13"), "data.tasks.seg.global_batch_size 13 is"),
        (
            ("--data.tasks.seg.per_device_batch_size", "3"),
            "data.tasks.seg.per_device_batch_size 3 does not divide",
        ),
        (("--data.tasks.seg.root", "nowhere"), "the folder nowhere does not exist"),
        (("--data.tasks.seg.crop", "3"), "data.tasks.seg.crop: ADE20K has no 'crop'"),
        (("--model.tasks.seg.norm", "train"), "is one for all tasks: set model.norm"),
        (("--model.frozen_tasks", "[sky]"), "model.frozen_tasks: there is no task sky"),
    ],
)
def test_what_cannot_be_trained_is_refused(words, said, small, gmf):
    result = gmf("fit", *small, *words)
    assert result.code == 2
    assert said in result.err


def test_several_tasks_of_one_kind(small, call, folder):
    """A second segmentation set; its classes, scores and curves are its own."""
    (folder / "more.yaml").write_text(MORE)
    result = call("fit", *small, "--config", "more.yaml", "--name", "more", cwd=folder)
    assert result.code == 0, result.err
    score = torch.load(folder / "runs/more/checkpoints/last.ckpt", weights_only=True)
    names = score["gmf_platform"]["class_names"]
    assert [n for n in names if n.startswith("again/")] == [
        n.replace("seg/", "again/") for n in names if n.startswith("seg/")
    ]
    assert "val/again/miou" in result.out
    assert "det" not in {name.split(".")[1] for name in score["state_dict"]}


MORE = """
model:
  tasks:
    cls: null
    det: null
    again:
      class_path: gmf_platform.tasks.SegmentationTask
      init_args:
        decode_head:
          class_path: gmf_platform.models.heads.SemanticFPN
          init_args: {channels: 16}
  balancing:
    class_path: gmf_platform.optim.balancing.FixedWeights
    init_args:
      weights: {seg: 2.0}
data:
  tasks:
    cls: null
    det: null
    again:
      class_path: datamodules.ADE20K
      init_args:
        root: ${data.init_args.tasks.seg.init_args.root}
        global_batch_size: 2
        crop_size: 64
        scale: [256, 64]
trainer:
  max_steps: 2
"""


def test_a_task_is_named_once(small, folder, gmf):
    (folder / "twice.yaml").write_text("data:\n  tasks:\n    seg: {root: a}\n    seg: {root: b}\n")
    result = gmf("fit", *small, "--config", folder / "twice.yaml")
    assert result.code == 2
    assert "twice.yaml:4: data.tasks.seg is there already, in line 3" in result.err


def test_parts_begin_from_single_tasks(small, trained, call, folder):
    """The backbone and a head, from a segmentation run; other heads are new."""
    parts = f"{{backbone: {trained.best}, seg: {trained.best}}}"
    line = ("fit", *small, "--name", "warm", "--init_from", parts)
    result = call(*line, "--model.optimizer.lr", "0.0", "--trainer.max_steps", "1", cwd=folder)
    assert result.code == 0, result.err
    own = read_state_dict(folder / "runs" / "warm" / "checkpoints" / "last.ckpt")
    single = read_state_dict(trained.best)
    same = ("backbone.groupmixformer_backbone", "decode_head", "auxiliary_head")
    checked = [n for n in single if n.startswith(same) and n.endswith("weight")]
    assert len(checked) > 20
    for name in checked:
        joint = name if name.startswith("backbone") else f"seg.{name}"
        assert torch.equal(own[joint], single[name]), name
    missing = call("fit", *small, "--name", "gone", "--init_from", "{seg: gone.pth}", cwd=folder)
    assert missing.code == 2
    assert "init_from: no file gone.pth" in missing.err
