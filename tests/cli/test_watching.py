"""What TensorBoard is given of a run, and that it changes nothing."""

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gmf_platform.models.weights import read_state_dict

UNWATCHED = (
    *("--magnitudes.updates", "false", "--charts.classes", "false"),
    *("--pictures.count", "0", "--worst.count", "0", "--trainer.log_every_n_steps", "2"),
)
PARTS = ["backbone.stem", *(f"backbone.stage{i}" for i in range(1, 5)), "decode_head"]


@pytest.fixture(scope="module")
def events(trained):
    found = EventAccumulator(str(trained.path), size_guidance={"images": 0, "tensors": 0})
    return found.Reload()


def test_scalars_of_each_part_and_class(events, scalars, trained):
    curves = scalars(trained.path)
    for part in [*PARTS, "auxiliary_head", "all"]:
        for kind in ("gradient_norm", "parameter_norm", "update_ratio"):
            steps = dict(curves[f"{kind}/{part}"])
            # The first step of the warm-up, at a rate of nearly nothing, need not move anything.
            assert steps.keys() | {0} == set(range(6)), (kind, part)
    classes = [tag for tag in curves if tag.startswith("val_iou/")]
    assert classes
    assert all([step for step, _ in curves[tag]] == [2, 5] for tag in classes)
    assert {"lr/decay", "speed/data_wait", "speed/memory_gib", "train/loss_decode"} < curves.keys()


def test_pictures_of_each_validation(events):
    tags = ["val/classes_iou", "val/confusion", "val/pictures", "val/worst"]
    assert sorted(events.Tags()["images"]) == tags
    assert all([image.step for image in events.Images(tag)] == [2, 5] for tag in tags)


def test_the_config_and_where_it_comes_from(events, trained):
    (config,) = events.Tensors("run/config/text_summary")
    shown = config.tensor_proto.string_val[0].decode()
    assert [line.removeprefix("    ") for line in shown.splitlines()] == (
        trained.path / "config.yaml"
    ).read_text().splitlines()
    (origin,) = events.Tensors("run/origin/text_summary")
    said = origin.tensor_proto.string_val[0].decode()
    assert [line.split()[0] for line in said.splitlines()] == [
        "git:",
        "version:",
        "host:",
        "command:",
    ]


def test_watching_changes_no_bit(trained, base, gmf, scalars, tmp_path):
    result = gmf("fit", *base, *UNWATCHED, "--name", "unwatched")
    assert result.code == 0, result.err
    other = tmp_path / "runs" / "unwatched"
    assert not any(tag.startswith("val_iou") for tag in scalars(other))
    one, two = (read_state_dict(r / "checkpoints" / "last.ckpt") for r in (trained.path, other))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    losses = dict(scalars(trained.path)["train/loss"])
    assert all(losses[step] == loss for step, loss in scalars(other)["train/loss"])
