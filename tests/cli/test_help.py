import re
import resource
import subprocess
import sys

import pytest


def test_help_without_a_config_fits_a_screen(gmf):
    for verb in ("fit", "validate", "test", "predict", "info", "check-data"):
        out = gmf(verb, "--help").out
        assert len(out.splitlines()) <= 24, verb
        assert f"`{verb} --config FILE --help` lists" in " ".join(out.split())


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_help_lists_the_keys_of_the_config(gmf, base, verb):
    out = gmf(verb, *base, "--help").out
    assert re.search(
        r"^model: SegmentationTask\. Trains a backbone with a decode head", out, re.MULTILINE
    )
    assert (
        "  --model.auxiliary_weight float (0 or more) = 0.4\n        of the auxiliary head's loss.\n"
        in out
    )
    assert "  --model.norm sync|train|frozen = sync\n" in out
    # Set by the overlay, with the default beside it.
    assert "  --model.decode_head.channels int (1 or more) = 16 (default 512)\n" in out
    assert "  --data.crop_size int (1 or more) = 64 (default 512)\n" in out
    assert "  --checkpoint.every_n_steps int (1 or more) = 2 (default 1000)\n" in out
    assert "  --model.optimizer.lr float|class = 0.001\n" in out
    # What the code gives is not asked for.
    for key in ("model.class_names", "model.seed", "data.seed", "model.decode_head.in_channels"):
        assert f"--{key} " not in out
    assert "trainer.accumulate_grad_batches" not in out


def test_help_follows_overrides(gmf):
    words = ("--config", "seg_ade20k", "--model.backbone.class_path")
    out = gmf("fit", *words, "gmf_platform.models.backbones.TimmBackbone", "--help").out
    assert "  --model.backbone.name str (must be given)\n" in out
    result = gmf("fit", "--help", *words, "no.Thing")
    assert result.code == 2
    assert result.err.startswith("error: command line: model.backbone.class_path")


def test_help_goes_into_settings(gmf):
    out = gmf("fit", "--config", "det_coco_faster_rcnn", "--help").out
    assert "  --model.head.rpn.matcher.positive float (0 to 1) = 0.7" in out


def test_help_of_joint_training(gmf):
    out = gmf("fit", "--config", "multitask", "--model.tasks.cls", "null", "--help").out
    assert "\nmodel.tasks.seg: SegmentationTask." in out
    assert "  --model.tasks.seg.decode_head.channels int (1 or more) = 512\n" in out
    assert "  --data.tasks.det.with_masks bool = true (default false)\n" in out
    assert "  --model.norm sync|train|frozen = sync\n" in out
    # What is trained how is said once, and not of each task; a task that was taken out is not shown.
    for key in ("model.tasks.seg.norm", "model.tasks.seg.class_names", "data.tasks.seg.seed"):
        assert f"--{key} " not in out
    assert "model.tasks.cls" not in out


OWN = '''class Mine:
    """Mine.

    Args:
        size: of it.
    """

    def __init__(self, size: int = 3) -> None: ...
'''


def test_help_of_a_users_own_class(gmf, base, modules):
    modules("my_losses", OWN)
    out = gmf("fit", *base, "--model.loss.class_path", "my_losses.Mine", "--help").out
    assert "model.loss: Mine. Mine\n  --model.loss.size int = 3\n        of it.\n" in out


def test_help_of_a_run(gmf, trained):
    out = gmf("validate", "--run", trained.path, "--help").out
    assert "  --data.crop_size int (1 or more) = 64 (default 512)\n" in out


def test_help_with_a_config_is_quick():
    code = (
        "import sys; from gmf_platform.cli.main import main\n"
        "try: main(['fit', '--config', 'det_coco_mask_rcnn', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'lightning', 'numpy')))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Time on the processor, not on the wall: other tests run beside.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3
