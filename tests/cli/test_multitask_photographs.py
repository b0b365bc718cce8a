"""Joint training on photographs of three sets, killed from outside and resumed."""

import os
import signal
import subprocess
import sys
import time

import pytest

STEPS, KILLED_AT = 24, 15

# As shipped but for sizes: mixup, RandAugment, dropout, drop-path and sampled regions are all on.
OVERLAY = """
init_from: none
model:
  backbone: {variant: mobile, depths: [1, 1, 2, 1]}
  tasks:
    det:
      head:
        channels: 32
        width: 64
        rpn: {proposals_train: 100, proposals_test: 100}
        box: {sampler: {number: 32}}
    seg:
      decode_head: {channels: 32}
      auxiliary_head: {channels: 32}
  optimizer: {lr: 1.0e-3}
  schedule: {warmup_steps: 8}
  statistics_batches: 2
data:
  num_workers: 0
  joint_size: [128, 64]
  tasks:
    cls:
      root: ${oc.env:GMF_DATA}/imagenette_mini
      global_batch_size: 8
      image_size: 64
    det:
      root: ${oc.env:GMF_DATA}/coco_mini
      global_batch_size: 8
      scale: [128, 64]
    seg:
      root: ${oc.env:GMF_DATA}/camvid_mini
      classes: ${oc.env:GMF_DATA}/camvid_mini/classes.txt
      global_batch_size: 8
      crop_size: 64
      scale: [256, 64]
trainer:
  accelerator: cpu
  max_steps: 24
  val_check_interval: 24
  log_every_n_steps: 1
  num_sanity_val_steps: 0
checkpoint: {every_n_steps: 4}
"""


def killed(words, *, cwd, log):
    """Start a run, and send it SIGKILL once its log has the step."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gmf_platform", *words],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    end = time.monotonic() + 900
    while not (log.exists() and f"step {KILLED_AT}/" in log.read_text()):
        assert process.poll() is None, "the run ended by itself"
        assert time.monotonic() < end
        time.sleep(0.05)
    process.kill()
    assert process.wait() == -signal.SIGKILL


@pytest.mark.data
@pytest.mark.slow
def test_killed_in_mid_epoch_and_resumed(real_data, call, scalars, tmp_path):
    for name in ("imagenette_mini", "coco_mini", "camvid_mini"):
        real_data(name)
    (tmp_path / "photographs.yaml").write_text(OVERLAY)
    line = ("fit", "--config", "multitask", "--config", "photographs.yaml", "--name")
    whole = call(*line, "whole", cwd=tmp_path)
    assert whole.code == 0, whole.err
    log = tmp_path / "runs" / "killed" / "log.txt"
    killed([*line, "killed"], cwd=tmp_path, log=log)
    resumed = call(*line, "killed", cwd=tmp_path)
    assert resumed.code == 0, resumed.err
    assert "going on at step" in resumed.out
    expected, got = (scalars(tmp_path / "runs" / name) for name in ("whole", "killed"))
    compared = [tag for tag in expected if tag.startswith(("train/", "val/"))]
    losses = [tag for tag in compared if tag.startswith("train/") and "/loss_" in tag]
    assert {tag.split("/")[1] for tag in losses} == {"cls", "det", "seg"}
    for tag in compared:
        assert got[tag] == expected[tag], tag
    for tag in losses:
        assert [step for step, _ in got[tag]] == list(range(STEPS)), tag
    cls, det, seg = (got[f"train/{x}/epochs"][KILLED_AT][1] for x in ("cls", "det", "seg"))
    assert cls < 1 < min(det, seg) < max(det, seg) < 2  # in different epochs, in the midst of each
