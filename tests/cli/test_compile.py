"""torch.compile in `fit`, for each task."""

import pytest
import torch

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
def test_two_compiled_steps(request, gmf, tmp_path, config, data, keys):
    torch._dynamo.reset()
    compiled = torch._dynamo.utils.counters["stats"]
    before = compiled["unique_graphs"]
    words = [f"--{key}={value}" for key, value in (SMALL | keys).items()]
    root = request.getfixturevalue(data)
    result = gmf("fit", "--config", config, "--data.root", root, "--name", "run", *words)
    assert result.code == 0, result.err
    assert compiled["unique_graphs"] > before
    saved = torch.load(tmp_path / "runs/run/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert saved["state_dict"]
    assert not [name for name in saved["state_dict"] if "_orig_mod" in name]
