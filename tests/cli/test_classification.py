"""Classification from the command line: the authors' files, other classes, other variants."""

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open

import gmf_platform
from gmf_platform.models.backbones.groupmixformer import VARIANTS


@pytest.fixture
def write(tmp_path):
    """Write a set of so many classes, or of those named, three images each."""

    def make(classes, parts=("train", "val")):
        names = [f"class_{i}" for i in range(classes)] if isinstance(classes, int) else classes
        generator = np.random.default_rng(0)
        for part in parts:
            for name in names:
                folder = tmp_path / "set" / part / name
                folder.mkdir(parents=True)
                for i in range(3):
                    pixels = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{i}.png")

    return make


@pytest.fixture
def official(request, tmp_path):
    """A file of the authors' with 10 classes, and the words that build its network."""
    path = request.config.rootpath / "tests" / "fixtures" / "groupmixformer_a.safetensors"
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.startswith("weights/")]  # noqa: SIM118
        weights = {name.removeprefix("weights/"): file.get_tensor(name) for name in names}
        settings = {key: json.loads(file.metadata()[key]) for key in ("mlp_ratios",)}
        settings["embedding_dims"] = json.loads(file.metadata()["embedding_dims"])
        settings["depths"] = json.loads(file.metadata()["serial_depths"])
    torch.save({"model": weights}, tmp_path / "official.pth")
    content = {
        "model": {"backbone": settings},
        "data": {"root": "set", "image_size": 64, "num_workers": 0, "global_batch_size": 4},
        "trainer": {"max_steps": 2, "num_sanity_val_steps": 0, "log_every_n_steps": 1},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content))
    return ("--config", "cls_imagenet", "--config", "small.yaml", "--init_from", "official.pth")


def test_the_authors_file_is_validated(gmf, write, official):
    write(10)
    result = gmf("validate", *official)
    assert result.code == 0, result.err
    scores = json.loads(result.out.splitlines()[-1])
    assert set(scores) >= {"val/top1", "val/top5", "val/macc", "val/loss"}
    assert scores["val/top1"] == pytest.approx(scores["val/macc"])  # as many images of each class
    assert scores["val/top5"] > scores["val/top1"]
    assert result.err.splitlines()[0].split() == [
        "class",
        "images",
        "top-1",
        "most",
        "often",
        "taken",
        "for",
    ]


def test_a_head_for_other_classes(gmf, write, official):
    """Training begins without it, and says so; scoring would be of noise."""
    write(3)
    result = gmf("validate", *official)
    assert result.code == 2
    assert "does not hold all of the model" in result.err
    assert "head.head.weight (file 10x80, model 3x80)" in result.err
    result = gmf("fit", *official, "--name", "a")
    assert result.code == 0, result.err
    assert "head.head.weight (file 10x80, model 3x80)" in result.out
    assert "val/top5" not in result.out  # of three classes


def test_another_variants_file_names_the_way(gmf, write, tmp_path):
    write(2)
    known = VARIANTS["tiny"]
    tensors = {
        f"groupmixformer_backbone.{stage}.gma_stage.{block}.mlp.fc1.weight": torch.zeros(1).expand(
            int(dim * ratio), dim
        )
        for stage, (dim, depth, ratio) in enumerate(
            zip(known.embedding_dims, known.depths, known.mlp_ratios, strict=True)
        )
        for block in range(depth)
    }
    torch.save({"model": tensors}, tmp_path / "tiny.pth")
    words = ("--data.root", "set", "--init_from", "tiny.pth", "--data.num_workers", 0)
    result = gmf("validate", "--config", "cls_imagenet", *words)
    assert result.code == 2
    assert "the model is GroupMixFormer small" in result.err
    assert "--model.backbone.variant tiny" in result.err


def test_fine_tuning_wants_weights(gmf, write):
    write(2)
    result = gmf("fit", "--config", "cls_imagenet_384", "--data.root", "set")
    assert result.code == 2
    assert "no file runs/cls_imagenet/checkpoints/best.ckpt" in result.err
    assert "--init_from FILE" in result.err


def test_ids_of_wordnet_are_read_as_words(gmf, write, official, tmp_path):
    write(["n01440764", "n02102040"])
    words = [*official[:-1], "none", "--trainer.max_steps", "1", "--name", "a"]
    assert gmf("fit", *words).code == 0
    assert "tench (n01440764) " in gmf("validate", "--run", "runs/a").err
    rows = (tmp_path / "runs" / "a" / "validate_per_sample.csv").read_text().splitlines()
    assert {row.split(",")[2] for row in rows[1:]} == {
        "tench (n01440764)",
        "English springer (n02102040)",
    }
    result = gmf("predict", "--run", "runs/a", "--images", "set/val", "--output", "out")
    assert result.code == 0, result.err
    names = [c["name"] for c in json.loads((tmp_path / "out" / "classes.json").read_text())]
    assert names == ["tench (n01440764)", "English springer (n02102040)"]
    row, *_ = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {guess["name"] for guess in row["classes"]} == {*names}
    model = gmf_platform.load(tmp_path / "runs" / "a", device="cpu")
    image = next((tmp_path / "set" / "val").rglob("*.png"))
    assert model.class_names == names
    assert {*model.predict(image).names} == {*names}
