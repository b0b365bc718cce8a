import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from gmf_platform.cli.arguments import Arguments, find_config
from gmf_platform.cli.fit import run_name

TAGS = [
    "train/loss",
    "train/loss_decode",
    "train/loss_auxiliary",
    "val/miou",
    "val/macc",
    "val/aacc",
    "lr/decay",
    "lr/no_decay",
    "speed/images_per_second",
    "speed/data_wait",
    "speed/memory_gib",
]


def listing(folder):
    """Each file under a folder, with its size and time."""
    stats = ((path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file())
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in stats}


def last_line(result):
    return json.loads(result.out.splitlines()[-1])


def scores(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def plain(value):
    """Whether a checkpoint's content is made of tensors and plain types alone."""
    if isinstance(value, dict):
        return all(plain(part) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple):
        return all(plain(part) for part in value)
    return type(value) in (torch.Tensor, str, int, float, bool, type(None))


# A finished run


def test_run_directory(trained):
    names = {str(path.relative_to(trained.path)) for path in listing(trained.path)}
    events = {name for name in names if name.startswith("events.out.tfevents.")}
    assert len(events) == 1
    assert names - events == {
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "checkpoints/previous.ckpt",
        "config.yaml",
        "history.jsonl",
        "log.txt",
        "metrics.jsonl",
        "pictures/validation.png",
    }


def test_last_line_is_the_score(trained):
    score = last_line(trained.result)
    assert score == scores(trained.path)[-1]
    assert (score["verb"], score["step"], score["finished"]) == ("fit", 6, True)
    assert score["run"] == "runs/done"
    assert score["checkpoint"] == "runs/done/checkpoints/best.ckpt"
    assert 0 <= score["val/miou"] <= 1


def test_log(trained, logged_steps):
    log = (trained.path / "log.txt").read_text()
    assert logged_steps(log) == logged_steps(trained.result.out) == [1, 2, 3, 4, 5, 6]
    for said in ("0.18 M parameters", "12 training images, 8 classes", "batch        4 = 4"):
        assert said in log


def test_rows_before_and_after(trained):
    """The network's own count is that of `info`; the last line is the score."""
    lines = [line.split(maxsplit=1) for line in trained.result.out.splitlines()]
    rows = {words[0]: words[1] for words in lines if len(words) == 2}
    assert re.fullmatch(r"0\.\d\d GFLOPs for an image of 64 x 64, forward", rows["operations"])
    assert rows["schedule"].startswith("AdamW, lr 0.001, Polynomial (warmup_steps 2, ")
    assert re.fullmatch(r"one device \(\w+\)", rows["strategy"])
    assert re.fullmatch(r"val/miou 0\.\d{4} at step [36]", rows["best"])
    assert re.fullmatch(r"0\.\d\d hours, \d+\.\d images/s in training", rows["time"])
    assert rows["checkpoint"] == "runs/done/checkpoints/best.ckpt"
    order = [words[0] for words in lines]
    assert order.index("strategy") < order.index("step") < order.index("best") < len(order) - 1


def test_batch_logs_are_plain(trained):
    assert not {"\x1b", "\r"} & {*trained.result.out, *(trained.path / "log.txt").read_text()}


def test_curves(trained, scalars):
    curves = scalars(trained.path)
    assert set(TAGS) <= set(curves)
    every = list(range(6))
    for tag in TAGS:
        steps = [step for step, _ in curves[tag]]
        assert steps == ([2, 5] if tag.startswith("val/") else every)
    parts = zip(curves["train/loss_decode"], curves["train/loss_auxiliary"], strict=True)
    sums = [decode + auxiliary for (_, decode), (_, auxiliary) in parts]
    assert [loss for _, loss in curves["train/loss"]] == pytest.approx(sums, rel=1e-5)
    best = max(value for _, value in curves["val/miou"])
    assert pytest.approx(best, rel=1e-7) in [score["val/miou"] for score in scores(trained.path)]
    assert all(0 <= value <= 1 for _, value in curves["speed/data_wait"])


def test_learning_rates_are_those_of_the_steps(trained, scalars):
    """Warm-up of 2 steps from a ratio of 1e-6, then linearly to 0 at step 6."""
    rates = [value for _, value in scalars(trained.path)["lr/decay"]]
    second = 1e-3 * 5 / 6 * (1 - 0.5 * (1 - 1e-6))
    expected = [1e-9, second, *(1e-3 * left / 6 for left in (4, 3, 2, 1))]
    assert rates == pytest.approx(expected, rel=1e-5)


def test_pictures(trained):
    with Image.open(trained.path / "pictures" / "validation.png") as sheet:
        assert sheet.width > 3 * 96  # image, truth and prediction side by side
        assert sheet.height >= 4 * 96  # four of them
        assert len(sheet.getcolors(sheet.width * sheet.height)) > 100


def test_checkpoints_hold_tensors_and_plain_types(trained):
    for name in ("last", "best"):
        content = torch.load(trained.path / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert plain(content)
        assert content["gmf_platform"]["class_names"][0] == "grass"
        assert all(key.startswith("model.") for key in content["state_dict"])


def test_config_is_whole(trained, gmf, overlay):
    """config.yaml alone stands for all configs and overrides that made it."""
    stored = yaml.safe_load((trained.path / "config.yaml").read_text())
    assert stored["model"]["init_args"]["backbone"]["init_args"]["depths"] == [1, 1, 1, 1]
    begin = ("fit", "--config", trained.path / "config.yaml", "--name", "done")
    result = gmf(*begin, cwd=trained.cwd)
    assert (result.code, "is finished" in result.out) == (0, True)


def test_same_command_again_changes_nothing(trained, gmf, base):
    before = listing(trained.cwd)
    result = gmf("fit", *base, "--name", "done", cwd=trained.cwd)
    assert result.code == 0
    assert "the run runs/done is finished; --fresh begins anew" in result.out
    assert last_line(result) == last_line(trained.result)
    assert listing(trained.cwd) == before


def test_another_config_is_refused(trained, gmf, base):
    before = listing(trained.cwd)
    words = ("--model.optimizer.lr", "0.5", "--data.crop_size", "70")
    result = gmf("fit", *base, "--name", "done", *words, cwd=trained.cwd)
    assert (result.code, result.out) == (2, "")
    assert "runs/done holds a run of another config:" in result.err
    assert "\n  data.crop_size: 64 -> 70\n  model.optimizer.lr: 0.001 -> 0.5\n" in result.err
    assert "--name" in result.err
    assert "--fresh" in result.err
    assert listing(trained.cwd) == before


@pytest.fixture
def copied(trained, tmp_path):
    """The finished run, in the test's own folder."""
    shutil.copytree(trained.path, tmp_path / "runs" / "done")
    return tmp_path / "runs" / "done"


def test_fresh_sets_aside(copied, gmf, base):
    before = {path.name: state for path, state in listing(copied).items()}
    words = ("--name", "done", "--fresh", "--trainer.max_steps", "1")
    result = gmf("fit", *base, *words)
    assert result.code == 0, result.err
    (aside,) = copied.parent.glob("done.*")
    assert f"the run before is kept as runs/{aside.name}" in result.out
    assert {path.name: state[0] for path, state in listing(aside).items()} == {
        name: size for name, (size, _) in before.items()
    }
    assert last_line(result)["step"] == 1
    assert len(scores(copied)) == 1


def test_a_longer_run_goes_on(copied, gmf, base, scalars):
    result = gmf("fit", *base, "--name", "done", "--trainer.max_steps", "8")
    assert result.code == 0, result.err
    assert "going on at step 6 of 8" in result.out
    assert last_line(result)["step"] == 8
    assert [score["step"] for score in scores(copied)] == [6, 8]
    curves = scalars(copied)
    assert [step for step, _ in curves["train/loss"]] == list(range(8))
    assert [step for step, _ in curves["val/miou"]] == [2, 5, 7]
    stored = yaml.safe_load((copied / "config.yaml").read_text())
    assert stored["trainer"]["max_steps"] == 8


def test_a_run_from_before_a_key_came_goes_on(copied, gmf, base):
    """Its config does not name the key, whose default is what the run has done."""
    stored = yaml.safe_load((copied / "config.yaml").read_text())
    assert stored["data"]["init_args"].pop("check_masks") == 200
    (copied / "config.yaml").write_text(yaml.safe_dump(stored))
    words = ("--name", "done", "--trainer.max_steps", "7")
    refused = gmf("fit", *base, *words, "--data.check_masks", "3")
    assert refused.code == 2
    assert "  data.check_masks: 200 -> 3\n" in refused.err
    result = gmf("fit", *base, *words)
    assert result.code == 0, result.err
    assert "going on at step 6 of 7" in result.out


def test_ckpt_path_wins(trained, gmf, base):
    words = ("--ckpt_path", trained.best, "--name", "other", "--trainer.max_steps", "7")
    result = gmf("fit", *base, *words)
    assert result.code == 0, result.err
    assert re.search("going on at step [36] of 7", result.out)  # wherever the best one is
    assert last_line(result)["step"] == 7


def test_checkpoint_of_another_model_is_refused(trained, gmf, base):
    words = ("--ckpt_path", trained.best, "--name", "other", "--model.decode_head.channels", "8")
    result = gmf("fit", *base, *words)
    assert result.code == 2
    assert "is of another model" in result.err
    assert "--init_from" in result.err


def test_weights_alone_are_no_checkpoint(trained, gmf, base, tmp_path):
    assert gmf("convert", trained.best, "plain.safetensors").code == 0
    result = gmf("fit", *base, "--ckpt_path", "plain.safetensors", "--name", "other")
    assert result.code == 2
    assert "holds weights alone" in result.err


def test_a_checkpoint_spares_a_run_of_another_config(trained, gmf, base, tmp_path):
    run = shutil.copytree(trained.best.parent.parent, tmp_path / "runs" / "done")
    before = (run / "config.yaml").read_text()
    words = ("--ckpt_path", trained.best, "--name", "done", "--model.optimizer.lr", "0.5")
    result = gmf("fit", *base, *words)
    assert result.code == 2
    assert "model.optimizer.lr" in result.err
    assert (run / "config.yaml").read_text() == before


def test_fresh_spares_a_run_that_is_alive(trained, gmf, base, tmp_path):
    run = shutil.copytree(trained.best.parent.parent, tmp_path / "runs" / "done")
    hold = (
        "import sys, time; from pathlib import Path;"
        "from gmf_platform.cli.run_directory import RunDirectory;"
        "run = RunDirectory(Path(sys.argv[1])); run.acquire(); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(run)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        result = gmf("fit", *base, "--name", "done", "--fresh")
        holder.kill()
    assert result.code == 2
    assert "is alive" in result.err
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["done"]


def test_masks_that_leave_nothing_are_refused(gmf, base, sample_ade20k, tmp_path):
    root = shutil.copytree(sample_ade20k, tmp_path / "data")
    for path in (root / "annotations").rglob("*.png"):
        mask = np.asarray(Image.open(path))
        Image.fromarray(np.where(mask > 3, 255, 0).astype(np.uint8)).save(path)
    words = ("--data.root", root, "--data.classes", "[ground, object]", "--name", "a")
    result = gmf("fit", *base, *words)
    assert result.code == 2
    assert "masks were looked at, and they do not fit the config" in result.err


def test_weights_to_begin_with(trained, gmf, base):
    words = ("--init_from", trained.best, "--name", "tuned", "--trainer.max_steps", "1")
    result = gmf("fit", *base, *words)
    assert result.code == 0, result.err
    assert "loaded            backbone" in result.out
    assert "going on" not in result.out


# Names


def names(*configs, **overrides):
    pairs = [(key.replace("__", "."), value) for key, value in overrides.items()]
    return run_name(Arguments(None, [find_config(str(config)) for config in configs], pairs))


def test_default_name(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.touch()
    assert names("seg_ade20k") == "seg_ade20k"
    assert names("seg_ade20k", "demo/seg", mine) == "seg_ade20k-demo_seg-mine"
    assert names("seg_ade20k", model__backbone__variant="small") == "seg_ade20k-variant=small"
    assert names("seg_ade20k", data__root="/sets/my set") == "seg_ade20k-root=my_set"
    # What does not change the result does not make another run.
    same = {"trainer__max_steps": "9", "data__num_workers": "3", "data__per_device_batch_size": "1"}
    assert names("seg_ade20k", **same) == "seg_ade20k"


def test_a_name_is_one_folder():
    for value in ("../../up", "/", "a/b", ".", "x" * 500):
        name = names("seg_ade20k", data__classes=value)
        assert "/" not in name
        assert len(name) <= 120


# Numbers of the run


def train(gmf, base, *words):
    """Train under the name ``a``; returns the step of each report and of each validation."""
    result = gmf("fit", *base, "--name", "a", *words)
    assert result.code == 0, result.err
    return result


def test_accumulation_counts_optimiser_steps(gmf, base, tmp_path, scalars, trained):
    result = train(gmf, base, "--data.per_device_batch_size", "2")
    assert "batch        4 = 2 per device x 1 devices x 2 accumulated" in result.out
    assert last_line(result)["step"] == 6
    curves, whole = scalars(tmp_path / "runs" / "a"), scalars(trained.path)
    assert [step for step, _ in curves["train/loss"]] == list(range(6))
    assert [step for step, _ in curves["val/miou"]] == [2, 5]
    assert curves["lr/decay"] == whole["lr/decay"]
    content = torch.load(tmp_path / "runs" / "a" / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["global_step"] == 6
    # The same 24 samples as without accumulation.
    loader = content["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]
    assert loader["samples_consumed"] == 24


def test_length_in_epochs(gmf, base, tmp_path, scalars):
    """12 images in steps of 4: 3 steps an epoch; an interval of 1.0 is an epoch."""
    result = train(
        gmf,
        base,
        *("--trainer.max_epochs", "2", "--trainer.max_steps", "-1"),
        *("--trainer.val_check_interval", "1.0"),
    )
    assert last_line(result)["step"] == 6
    assert [step for step, _ in scalars(tmp_path / "runs" / "a")["val/miou"]] == [2, 5]


def test_interval_longer_than_the_run(gmf, base, tmp_path, scalars):
    words = ("--trainer.val_check_interval", "500", "--trainer.max_steps", "2")
    assert last_line(train(gmf, base, *words))["step"] == 2
    assert [step for step, _ in scalars(tmp_path / "runs" / "a")["val/miou"]] == [1]


def test_learning_rate_scales_with_the_batch(gmf, base, tmp_path, scalars):
    words = ("--model.lr_for_batch_size", "8", "--trainer.max_steps", "3")
    result = train(gmf, base, *words, "--model.schedule.warmup_steps", "0")
    assert "lr scaling   x 0.5 (model.lr_for_batch_size: 8)" in result.out
    assert scalars(tmp_path / "runs" / "a")["lr/decay"][0][1] == pytest.approx(5e-4)


def test_a_run_without_validation(gmf, base):
    result = train(gmf, base, "--trainer.limit_val_batches", "0", "--trainer.max_steps", "1")
    score = last_line(result)
    assert score["val/miou"] is None
    assert score["checkpoint"] == "runs/a/checkpoints/last.ckpt"
    assert score["checkpoint_hash"]


# A try


def test_dry_run_leaves_nothing(gmf, base, tmp_path):
    result = gmf("fit", *base, "--dry-run")
    assert result.code == 0, result.err
    assert list(tmp_path.iterdir()) == []
    for said in (
        "0.18 M parameters",
        "batch        4 = 4 per device x 1 devices x 1 accumulated",
        "s a step",
        "GiB at most",
        "hours for 6 steps",
    ):
        assert said in result.out


# Wrong input


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data.global_batch_size", "1"), "the batch is too small for the norm"),
        (("--data.global_batch_size", "13"), "is more than the 12 training samples"),
        (("--data.per_device_batch_size", "3"), "one of 1, 2, 4 would"),
        (("--data.crop_size", "32"), "it needs at least 64x64"),
        (("--data.classes", "[one, two]"), "data.classes has no place for 3, 4"),
        (("--trainer.max_steps", "-1"), "set trainer.max_steps or trainer.max_epochs"),
        (("--trainer.accumulate_grad_batches", "2"), "follows from data.global_batch_size"),
        (("--trainer.val_check_interval", "0"), "neither a number of steps"),
        (("--trainer.val_check_interval", "00:01:00:00"), "neither a number of steps"),
        (
            ("--checkpoint.every_n_steps", "0"),
            "line: checkpoint.every_n_steps: expected int (1 or more)",
        ),
    ],
)
def test_wrong_start_is_no_obstacle(gmf, base, words, said):
    result = gmf("fit", *base, "--name", "a", "--trainer.max_steps", "1", *words)
    assert result.code == 2
    assert said in result.err
    assert "Traceback" not in result.err
    corrected = gmf("fit", *base, "--name", "a", "--trainer.max_steps", "1")
    assert corrected.code == 0, corrected.err
    assert last_line(corrected)["step"] == 1


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (
            "--data.eval_batch_size",
            "0",
            "line: data.eval_batch_size: expected int (1 or more), not 0",
        ),
        ("--data.num_workers", "-1", "data.num_workers: expected int or null (0 or more), not -1"),
        ("--data.crop_size", "0", "line: data.crop_size: expected int (1 or more), not 0"),
        (
            "--trainer.log_every_n_steps",
            "0",
            "log_every_n_steps: expected int or null (1 or more), not 0",
        ),
        ("--model.optimizer.lr", "-1", ": model.optimizer: Invalid learning rate: -1"),
        ("--model.auxiliary_head.index", "7", "index 7 is none of the backbone's maps, 0 to 3"),
        (
            "--model.backbone.drop_path",
            "1.5",
            "drop_path: expected float or null (0 to 1), not 1.5",
        ),
    ],
)
def test_numbers_out_of_range(gmf, base, key, value, said):
    result = gmf("fit", *base, key, value)
    assert result.code == 2
    assert said in result.err
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize("sanity", [0, 1])
def test_metric_that_is_not_logged(gmf, base, sanity, tmp_path):
    words = ("--checkpoint.monitor", "val/iou", "--trainer.num_sanity_val_steps", str(sanity))
    result = gmf("fit", *base, "--name", "a", *words)
    assert result.code == 2
    assert "no 'val/iou'; one of val/aacc, val/macc, val/miou would do" in result.err
    # Said before training where there is a check before training.
    assert ("step 1/" in result.out) == (sanity == 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_image_in_mid_training(gmf, base, sample_ade20k, tmp_path, workers, logged_steps):
    shutil.copytree(sample_ade20k, tmp_path / "set")
    image = sorted((tmp_path / "set" / "images" / "training").iterdir())[5]
    image.write_bytes(image.read_bytes()[:300])
    words = ("--data.root", "set", "--data.num_workers", str(workers))
    result = gmf("fit", *base, *words, "--name", "a", "--data.global_batch_size", "2")
    assert result.code == 2
    assert result.err.startswith(f"error: set/images/training/{image.name}: ")
    assert logged_steps(result.out)  # not in the first step


FULL = """
import torch
from gmf_platform.models.heads import FCNHead

class FullHead(FCNHead):
    def forward(self, features):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\\nmore")
"""


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_out_of_memory_says_what_to_change(gmf, base, modules, dry, tmp_path):
    modules("full_head", FULL)
    (tmp_path / "full.yaml").write_text("model: {decode_head: {class_path: full_head.FullHead}}\n")
    words = ("--config", "full.yaml", "--trainer.max_steps", "1", *dry)
    result = gmf("fit", *base, *words)
    assert result.code == 2
    assert "out of memory with 4 images per device (CUDA out of memory." in result.err
    assert "--data.per_device_batch_size 2" in result.err
    assert "--model.backbone.checkpointing true" in result.err
