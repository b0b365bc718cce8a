"""torch.compile in `fit`, for each task.

In processes of their own: what compiles starts threads and processes, and tests behind it in the
same process that fork could not train, or would wait for a compiler for ever.
"""

import subprocess
import sys

import pytest
import torch

COUNTING = """
import sys
import torch
from gmf_platform.cli.main import main

code = main(sys.argv[1:])
print("graphs", torch._dynamo.utils.counters["stats"]["unique_graphs"])
sys.exit(code)
"""

CLASSIFICATION = {"data.image_size": 64, "data.eval_batch_size": 2}
DETECTION = {"data.scale": "[96, 96]", "model.head.channels": 16}
SEGMENTATION = {
    "data.crop_size": 64,
    "data.scale": "[256, 64]",
    "model.decode_head.channels": 16,
    "model.auxiliary_head.channels": 16,
}

SMALL = {
    "init_from": "none",
    "model.compile": "true",
    "model.backbone.embedding_dims": "[20, 40, 60, 80]",
    "model.backbone.depths": "[1, 1, 1, 1]",
    "model.backbone.mlp_ratios": "[2, 2, 2, 2]",
    "data.global_batch_size": 2,
    "data.num_workers": 0,
    "trainer.accelerator": "cpu",
    "trainer.max_steps": 2,
    "trainer.limit_val_batches": 1,
    "trainer.num_sanity_val_steps": 0,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "data", "keys"),
    [
        ("seg_ade20k", "sample_ade20k", SEGMENTATION),
        ("cls_imagenet", "sample_imagenet", CLASSIFICATION),
        ("det_coco_retinanet", "sample_coco", DETECTION),
        ("det_coco_mask_rcnn", "sample_coco", DETECTION),
    ],
)
def test_two_compiled_steps(request, tmp_path, config, data, keys):
    words = [f"--{key}={value}" for key, value in (SMALL | keys).items()]
    root = request.getfixturevalue(data)
    line = ["fit", "--config", config, "--data.root", root, "--name", "run", *words]
    done = subprocess.run(
        [sys.executable, "-c", COUNTING, *line],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 0
    saved = torch.load(tmp_path / "runs/run/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert saved["state_dict"]
    assert not [name for name in saved["state_dict"] if "_orig_mod" in name]
