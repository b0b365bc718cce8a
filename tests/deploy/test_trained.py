import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import gmf_platform
from gmf_platform.errors import UserError
from gmf_platform.evaluation import most_probable

SIZES = [(70, 100), (140, 90), (70, 100)]


@pytest.fixture
def photos(tmp_path):
    """Two pictures of one size and one of another."""
    draw = np.random.default_rng(0)
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    for path, (height, width) in zip(paths, SIZES, strict=True):
        coarse = Image.fromarray(draw.integers(0, 256, (7, 9, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(path)
    return paths


def test_classification(save, photos):
    task, path = save("classification")
    model = gmf_platform.load(path, device="cpu")
    result = model.predict(photos[0])
    (batch,) = model.datamodule.predict_loader(photos[:1])
    (guesses,) = most_probable(task.model(batch["images"]))
    assert model.class_names == task.class_names
    names, probabilities = zip(*guesses.named(task.class_names), strict=True)
    assert result.names == [*names]
    assert result.probabilities == pytest.approx([*probabilities], abs=1e-6)


@pytest.mark.parametrize("kind", ["segmentation", "detection", "masks"])
def test_results_are_at_the_images_own_size(save, photos, kind):
    """Against the task called by hand on each image."""
    task, path = save(kind)
    model = gmf_platform.load(path, device="cpu")
    for photo, size, result in zip(photos, SIZES, model.predict(photos), strict=True):
        (batch,) = model.datamodule.predict_loader([photo])
        (expected,) = task.predict_step(batch, 0)
        assert batch["images"].shape[-2:] != size
        if kind == "segmentation":
            assert result.labels.shape == size
            assert np.array_equal(result.labels, expected.numpy())
        else:
            assert result.found.size == size
            assert len(result.scores) > 0
            np.testing.assert_allclose(result.boxes, expected.boxes, atol=1e-3)
            assert (result.masks is not None) == (kind == "masks")


@pytest.mark.parametrize("kind", ["classification", "segmentation", "detection"])
def test_any_form_of_image_and_any_batch(save, photos, kind):
    """One image in four forms, and images of one size in one batch, in the order asked for."""
    _, path = save(kind)
    model = gmf_platform.load(str(path), device="cpu")
    picture = Image.open(photos[0])
    forms = [photos[0], str(photos[0]), picture, np.asarray(picture)]
    first, *others = (facts_of(model.predict(form)) for form in forms)
    for other in others:
        assert np.array_equal(first, other)
    model.datamodule.eval_batch_size = 2
    assert len(list(model.datamodule.predict_loader(photos))) == 2
    for photo, result in zip(photos, model.predict(photos), strict=True):
        np.testing.assert_allclose(facts_of(result), facts_of(model.predict(photo)), atol=1e-4)
    assert model.predict([]) == []


def facts_of(result):
    match result:
        case gmf_platform.deploy.results.ClassificationResult():
            return np.array(result.probabilities)
        case gmf_platform.deploy.results.SegmentationResult():
            return result.labels
        case _:
            return result.boxes


def test_a_joint_model(save, photos):
    """All tasks at the joint size, as the task called by hand; each at its own as a part."""
    task, path = save("joint", scores={"val/score": 0.5, "val/seg/miou": 0.25})
    model = gmf_platform.load(path, device="cpu")
    assert model.class_names == task.class_names
    (batch,) = model.datamodule.predict_loader(photos[:1])
    assert tuple(batch["images"].shape[-2:]) == (96, 128)
    expected = task.predict_step(batch, 0)
    result = model.predict(photos[0])
    assert list(result) == ["cls", "seg", "det"]
    assert np.array_equal(result["seg"].labels, expected["seg"][0].numpy())
    np.testing.assert_allclose(result["det"].boxes, expected["det"][0].boxes, atol=1e-3)
    assert set(result["cls"].names) <= {"ant", "bee", "cat", "dog", "eel", "fox", "gnu"}
    assert result.draw().width == sum(part.draw().width for part in result.values())

    parts = model.parts()
    assert parts["seg"].facts["scores"] == {"val/miou": 0.25}
    for name, part in parts.items():
        (batch,) = part.datamodule.predict_loader(photos[:1])
        (ours,) = task.task(name).predict_step(batch, 0)
        found = part.predict(photos[0])
        match name:
            case "seg":
                assert np.array_equal(found.labels, ours.numpy())
            case "det":
                np.testing.assert_allclose(found.boxes, ours.boxes, atol=1e-3)
            case _:
                names, probabilities = zip(*ours.named(part.class_names), strict=True)
                assert found.names == [*names]
                assert found.probabilities == pytest.approx([*probabilities], abs=1e-6)
    assert gmf_platform.load(save("segmentation")[1], device="cpu").parts() == {}


def test_a_joint_model_takes_images_of_one_joint_size_together(save, photos):
    """70 x 100 and 72 x 100 come out alike; what is said of each is what is said of it alone."""
    _, path = save("joint")
    model = gmf_platform.load(path, device="cpu")
    Image.open(photos[2]).resize((100, 72)).save(photos[2])
    alone = model.predict(photos)
    model.datamodule.eval_batch_size = 2
    assert model.datamodule.predict_groups(photos) == [[0, 2], [1]]
    for one, other in zip(alone, model.predict(photos), strict=True):
        assert other["seg"].labels.shape == one["seg"].labels.shape
        assert (one["seg"].labels != other["seg"].labels).mean() < 1e-3
        for name in ("cls", "det"):
            np.testing.assert_allclose(facts_of(one[name]), facts_of(other[name]), atol=1e-3)


def test_a_converted_file_carries_all(save, photos, gmf, tmp_path):
    task, path = save("detection", category_ids=[5, 6, 7, 8, 9, 10, 11])
    assert gmf("convert", path, "plain.safetensors").code == 0
    model = gmf_platform.load(tmp_path / "plain.safetensors", device="cpu")
    expected = gmf_platform.load(path, device="cpu")
    assert model.class_names == task.class_names
    assert model.facts == expected.facts
    both = (x.predict(photos[0]).boxes for x in (model, expected))
    assert np.array_equal(*both)


def test_a_run_of_an_earlier_release(save, photos, tmp_path):
    """Its checkpoint does not hold the config, which is beside it, or is named."""
    _, path = save("segmentation")
    content = torch.load(path, weights_only=True)
    config = content["gmf_platform"].pop("config")
    run = tmp_path / "runs" / "old"
    (run / "checkpoints").mkdir(parents=True)
    torch.save(content, run / "checkpoints" / "last.ckpt")
    (run / "config.yaml").write_text(config)
    expected = gmf_platform.load(path, device="cpu").predict(photos[0]).labels
    assert np.array_equal(gmf_platform.load(run, device="cpu").predict(photos[0]).labels, expected)
    alone = tmp_path / "elsewhere" / "more"
    alone.mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").rename(alone / "last.ckpt")
    with pytest.raises(UserError, match="does not say of what model"):
        gmf_platform.load(alone / "last.ckpt")
    model = gmf_platform.load(alone / "last.ckpt", config=run / "config.yaml", device="cpu")
    assert np.array_equal(model.predict(photos[0]).labels, expected)
    with pytest.raises(UserError, match="has no checkpoint"):
        gmf_platform.load(run)


def test_wrong_files(save, tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        gmf_platform.load(tmp_path / "none.ckpt")
    _, path = save("classification")
    content = torch.load(path, weights_only=True)
    del content["state_dict"]["model.head.head.bias"]
    torch.save(content, path)
    with pytest.raises(UserError, match="does not hold all of the model"):
        gmf_platform.load(path)
    config = yaml.safe_load(content["gmf_platform"]["config"])
    config["model"]["init_args"]["backbone"]["class_path"] = "elsewhere.Backbone"
    content["gmf_platform"]["config"] = yaml.safe_dump(config)
    torch.save(content, path)
    with pytest.raises(
        UserError, match=r"ClassificationTask cannot be built .*backbone: .*elsewhere"
    ):
        gmf_platform.load(path)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((9, 9), np.uint8), r"an array uint8 \(9, 9\)"),
        (np.zeros((9, 9, 3), np.float32), "an array float32"),
        (7, "int"),
    ],
)
def test_wrong_images(save, image, said):
    model = gmf_platform.load(save("classification")[1], device="cpu")
    with pytest.raises(UserError, match=said):
        model.predict([image])


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_no_such_device(save, device):
    with pytest.raises(UserError, match=f"^device {device}: "):
        gmf_platform.load(save("classification")[1], device=device)


def test_importing_the_package_imports_nothing_slow():
    code = "import sys, gmf_platform; print({'torch', 'numpy', 'lightning'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
