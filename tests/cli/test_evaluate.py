import json
import shutil

import pytest
import torch

from gmf_platform.models.weights import read_facts


def last_line(result):
    return json.loads(result.out.splitlines()[-1])


def test_best_checkpoint_scores_what_fit_reported(trained, gmf, tmp_path):
    shutil.copytree(trained.path, tmp_path / "runs" / "done")
    fitted = last_line(trained.result)
    by_run = gmf("validate", "--run", "runs/done")
    config = ("--config", "runs/done/config.yaml")
    by_path = gmf("validate", *config, "--ckpt_path", "runs/done/checkpoints/best.ckpt")
    by_init = gmf("validate", *config, "--init_from", "runs/done/checkpoints/best.ckpt")
    for result in (by_run, by_path, by_init):
        assert result.code == 0, result.err
        line = last_line(result)
        assert line["val/miou"] == fitted["val/miou"]
        assert line["checkpoint_hash"] == fitted["checkpoint_hash"]
        assert (line["verb"], line["step"]) == ("validate", fitted["best_step"])
        assert "grass" in result.err  # the table by class
    recorded = (tmp_path / "runs" / "done" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in recorded] == [
        fitted,
        last_line(by_run),
        last_line(by_path),
    ]


def test_test_has_names_of_its_own(trained, gmf, tmp_path):
    shutil.copytree(trained.path, tmp_path / "runs" / "done")
    result = gmf("test", "--run", "runs/done")
    assert result.code == 0, result.err
    line = last_line(result)
    # ADE20K's test labels are not public: the split is the validation images.
    assert line["test/miou"] == last_line(trained.result)["val/miou"]
    assert line["verb"] == "test"
    assert not any(key.startswith("val/") for key in line)


def test_batches_of_equal_sizes_change_nothing(trained, gmf, base, tmp_path):
    words = ("--ckpt_path", trained.best, "--data.eval_batch_size", "2", "--data.num_workers", "1")
    shutil.copy(trained.best, tmp_path / "best.ckpt")
    result = gmf("validate", *base, *words[2:], "--ckpt_path", "best.ckpt")
    assert result.code == 0, result.err
    assert last_line(result)["val/miou"] == pytest.approx(
        last_line(trained.result)["val/miou"], rel=1e-3
    )


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_untrained_weights_are_refused(gmf, base, verb):
    result = gmf(verb, *base)
    assert (result.code, result.out) == (2, "")
    assert "the weights are not trained" in result.err
    assert "--allow-random" in result.err


def test_untrained_weights_knowingly(gmf, base):
    result = gmf("validate", *base, "--allow-random")
    assert result.code == 0, result.err
    line = last_line(result)
    assert (line["checkpoint"], line["checkpoint_hash"], line["step"]) == (None, None, None)


@pytest.fixture
def backbone_alone(trained, tmp_path):
    """The run's backbone in a file of its own: the head of a model from it is untrained."""
    content = torch.load(trained.best, weights_only=True)["state_dict"]
    start = "model.backbone."
    torch.save(
        {name.removeprefix(start): v for name, v in content.items() if name.startswith(start)},
        tmp_path / "backbone.pth",
    )
    return tmp_path / "backbone.pth"


def test_untrained_head_is_refused(gmf, base, backbone_alone):
    result = gmf("validate", *base, "--init_from", backbone_alone)
    assert result.code == 2
    assert "does not hold all of the model, so its results would be noise" in result.err
    assert "decode_head" in result.err
    knowingly = gmf("validate", *base, "--init_from", backbone_alone, "--allow-random")
    assert knowingly.code == 0, knowingly.err


def test_untrained_head_is_what_training_begins_with(gmf, base, backbone_alone):
    words = ("--init_from", backbone_alone, "--trainer.max_steps", "1", "--name", "a")
    result = gmf("fit", *base, *words)
    assert result.code == 0, result.err


def test_another_variant_is_refused_naming_both(gmf, sample_ade20k, tmp_path):
    from gmf_platform.models.backbones import GroupMixFormer

    torch.save(GroupMixFormer("mobile").state_dict(), tmp_path / "mobile.pth")
    result = gmf(
        "validate",
        *("--config", "seg_ade20k", "--config", "demo/seg", "--data.root", sample_ade20k),
        *("--model.backbone.variant", "tiny", "--init_from", "mobile.pth"),
    )
    assert result.code == 2
    assert "GroupMixFormer mobile (" in result.err
    assert "GroupMixFormer tiny (" in result.err
    assert "--model.backbone.variant mobile" in result.err


def test_another_network_is_refused(trained, gmf, base):
    words = ("--ckpt_path", trained.best, "--model.backbone.depths", "[1,1,2,1]")
    result = gmf("validate", *base, *words)
    assert result.code == 2
    assert "depths 1-1-1-1" in result.err
    assert "depths 1-1-2-1" in result.err


def test_a_run_that_is_none(gmf, tmp_path):
    result = gmf("validate", "--run", "runs/x")
    assert result.code == 2
    assert "runs/x/config.yaml does not exist" in result.err


def test_a_run_without_checkpoint(trained, gmf, tmp_path):
    (tmp_path / "runs" / "a").mkdir(parents=True)
    shutil.copy(trained.path / "config.yaml", tmp_path / "runs" / "a")
    result = gmf("validate", "--run", "runs/a")
    assert result.code == 2
    assert result.err == "error: --run runs/a: the run has no checkpoint yet\n"


def test_classes_in_another_order_are_refused(trained, gmf, base):
    names = read_facts(trained.best)["class_names"]
    swapped = json.dumps([names[1], names[0], *names[2:]])
    result = gmf("validate", *base, "--ckpt_path", trained.best, "--data.classes", swapped)
    assert result.code == 2
    assert "label 0 is 'grass' there and" in result.err
    assert "(2 of 8 differ)" in result.err
