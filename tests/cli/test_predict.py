import json
import shutil

import numpy as np
import pytest
from PIL import Image

from gmf_platform.cli.predict import find_images
from gmf_platform.errors import UserError


@pytest.fixture
def photos(tmp_path, sample_ade20k):
    """Three pictures of different sizes, one in a sub-folder, and a file that is none."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    sources = sorted((sample_ade20k / "images" / "validation").iterdir())
    with Image.open(sources[0]) as image:
        image.resize((100, 70)).save(folder / "a.jpg")
        image.resize((90, 140)).save(folder / "b.PNG")
        image.save(folder / "more" / "a.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def written(output):
    return sorted(str(path.relative_to(output)) for path in output.rglob("*") if path.is_file())


def test_folder(trained, gmf, photos, tmp_path):
    result = gmf("predict", "--run", trained.path, "--images", "photos", "--output", "out")
    assert result.code == 0, result.err
    assert result.out.splitlines() == [
        *(f"predict  batch {number}/3" for number in (1, 2, 3)),
        "3 images: labels, overlays and predictions.json are in out",
    ]
    assert written(tmp_path / "out") == [
        "a.png",
        "a_overlay.jpg",
        "b.png",
        "b_overlay.jpg",
        "classes.json",
        "more/a.png",
        "more/a_overlay.jpg",
        "predictions.json",
    ]
    rows = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [row["labels"] for row in rows] == ["a.png", "b.png", "more/a.png"]
    assert all(sum(row["shares"].values()) == pytest.approx(1, abs=1e-5) for row in rows)
    for name, size in (("a", (100, 70)), ("b", (90, 140)), ("more/a", (96, 96))):
        labels = Image.open(tmp_path / "out" / f"{name}.png")
        assert (labels.size, labels.mode) == (size, "P")
        assert np.asarray(labels).max() < 8
        assert Image.open(tmp_path / "out" / f"{name}_overlay.jpg").size == size


def test_legend_has_the_colours_of_the_pictures(trained, gmf, photos, tmp_path):
    gmf("predict", "--run", trained.path, "--images", "photos", "--output", "out")
    legend = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert [row["label"] for row in legend] == list(range(8))
    assert (legend[0]["name"], legend[-1]["name"]) == ("grass", "ring")
    colours = np.array([row["colour"] for row in legend])
    labels = Image.open(tmp_path / "out" / "a.png")
    shown = np.asarray(labels.convert("RGB"))
    assert np.array_equal(shown, colours[np.asarray(labels)])


def test_labels_are_the_models(trained, gmf, photos, tmp_path):
    """Against the task called by hand, on an image that needs resizing."""
    from contextlib import chdir

    import torch

    from gmf_platform.cli.arguments import VerbParser, parse_arguments
    from gmf_platform.cli.experiment import Experiment

    gmf("predict", "--run", trained.path, "--images", "photos/a.jpg", "--output", "out")
    parser = VerbParser("predict", "Predict.")
    parser.add_weights()
    with chdir(tmp_path):
        experiment = Experiment(parse_arguments(parser, ["--run", str(trained.path)]))
        experiment.build(tmp_path, quiet=True)
    experiment.load(trained.best, allow_partial=False)
    (batch,) = experiment.datamodule.predict_loader([photos / "a.jpg"])
    assert batch["images"].shape[-2:] != (70, 100)
    with torch.no_grad():
        (labels,) = experiment.task.eval().predict_step(batch, 0)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "a.png")), labels.numpy())


def test_without_the_data_set(trained, gmf, photos, tmp_path):
    """The classes come from the checkpoint."""
    words = ("--images", "photos/a.jpg", "--data.root", "/no/folder")
    for name, weights in (("run", ("--run", trained.path)), ("seg", ())):
        begin = weights or (
            *("--config", trained.path / "config.yaml"),
            *("--ckpt_path", trained.best),
        )
        result = gmf("predict", *begin, *words, "--output", name)
        assert result.code == 0, result.err
        legend = json.loads((tmp_path / name / "classes.json").read_text())
        assert len(legend) == 8


def test_a_checkpoint_alone_is_enough(trained, gmf, photos, tmp_path):
    """It holds its run's config."""
    shutil.copy(trained.best, tmp_path / "alone.ckpt")
    words = ("--images", "photos", "--data.eval_batch_size", "2")
    for name, weights in (
        ("run", ("--run", trained.path)),
        ("alone", ("--ckpt_path", "alone.ckpt")),
    ):
        result = gmf("predict", *weights, *words, "--output", name)
        assert result.code == 0, result.err
    for name in ("a.png", "b.png", "more/a.png"):
        first, second = (np.asarray(Image.open(tmp_path / x / name)) for x in ("run", "alone"))
        assert np.array_equal(first, second)


def test_python_says_and_draws_the_same(trained, gmf, photos, tmp_path):
    import gmf_platform

    gmf("predict", "--run", trained.path, "--images", "photos", "--output", "out")
    model = gmf_platform.load(trained.path, device="cpu")
    assert set(model.facts["scores"]) == {"val/miou", "val/macc", "val/aacc"}
    for name, file in (("a", "a.jpg"), ("b", "b.PNG"), ("more/a", "more/a.png")):
        result = model.predict(photos / file)
        labels = Image.open(tmp_path / "out" / f"{name}.png")
        assert np.array_equal(result.labels, np.asarray(labels))
        result.draw().save(tmp_path / "drawn.jpg", quality=92)
        written = (tmp_path / "out" / f"{name}_overlay.jpg").read_bytes()
        assert (tmp_path / "drawn.jpg").read_bytes() == written


def test_unreadable_image_is_named(trained, gmf, photos):
    half = (photos / "a.jpg").read_bytes()[:1000]
    broken = ((b"no picture", "is not an image"), (b"", "is empty"), (half, "is cut off"))
    for content, said in broken:
        (photos / "c.jpg").write_bytes(content)
        result = gmf("predict", "--run", trained.path, "--images", "photos", "--output", "out")
        assert result.code == 2
        assert result.err.startswith(f"error: photos/c.jpg: {said}")


def test_wrong_output(trained, gmf, photos):
    words = ("--images", "photos/a.jpg", "--output", "photos/notes.txt")
    result = gmf("predict", "--run", trained.path, *words)
    assert result.code == 2
    assert result.err == "error: --output photos/notes.txt: is a file; name a folder\n"


def test_untrained_weights_are_refused(gmf, base, photos):
    words = ("--images", "photos/a.jpg", "--output", "out")
    result = gmf("predict", *base, *words)
    assert result.code == 2
    assert "the weights are not trained" in result.err
    assert gmf("predict", *base, *words, "--allow-random").code == 0


def test_find_images(photos, monkeypatch):
    monkeypatch.chdir(photos.parent)

    def names(*words):
        return {str(path): str(name) for path, name in find_images(words).items()}

    folder = {"photos/a.jpg": "a", "photos/b.PNG": "b", "photos/more/a.png": "more/a"}
    assert names("photos") == folder
    assert names("photos/a.jpg", "photos/b.PNG") == {"photos/a.jpg": "a", "photos/b.PNG": "b"}
    assert names("photos/*.jpg") == {"photos/a.jpg": "a"}
    assert names("photos/**/*.png") == {"photos/more/a.png": "a"}
    assert names(str(photos / "*.jpg")) == {str(photos / "a.jpg"): "a"}
    assert names("photos", "photos") == folder
    (photos / "._a.jpg").write_bytes(b"of macOS")
    assert names("photos") == folder
    assert names("photos/*") == {"photos/a.jpg": "a", "photos/b.PNG": "b"}


@pytest.mark.parametrize("word", ["photos/x.jpg", "photos/*.webp", "empty", "photos/**/z.png"])
def test_words_that_name_nothing(photos, monkeypatch, word):
    monkeypatch.chdir(photos.parent)
    (photos.parent / "empty").mkdir()
    with pytest.raises(UserError, match="no such file, or no images in it"):
        find_images(["photos/a.jpg", word])


def test_names_that_collide(photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    with pytest.raises(UserError) as error:
        find_images(["photos/a.jpg", "photos/more/a.png"])
    assert "photos/a.jpg and photos/more/a.png would both be written as a" in str(error.value)
    shutil.copy(photos / "a.jpg", photos / "a.png")
    with pytest.raises(UserError, match="would both be written as a"):
        find_images(["photos"])


def test_files_are_overwritten_knowingly(trained, gmf, photos):
    """Labels are written as NAME.png, which may be a mask or even one of the images."""
    image = photos / "more" / "a.png"
    before = image.read_bytes()
    for images, output in (("photos", "photos"), ("photos/more/a.png", "photos/../photos/more")):
        words = ("--images", images, "--output", output, "--overwrite")
        result = gmf("predict", "--run", trained.path, *words)
        assert result.code == 2
        assert "more/a.png is one of the images and would be overwritten" in result.err
        assert image.read_bytes() == before
    line = ("predict", "--run", trained.path, "--images", "photos/a.jpg", "--output", "photos/more")
    result = gmf(*line)
    assert result.code == 2
    assert "--output photos/more: photos/more/a.png is there already" in result.err
    assert image.read_bytes() == before
    assert gmf(*line, "--overwrite").code == 0
    assert image.read_bytes() != before


def test_damaged_checkpoint_is_said(trained, gmf, base, sample_ade20k, tmp_path):
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes(trained.best.read_bytes()[:5000])
    images = ("--images", sample_ade20k / "images" / "validation", "--output", "out")
    result = gmf("predict", *base, "--ckpt_path", damaged, *images)
    assert result.code == 2
    assert "damaged.ckpt" in result.err
    assert "Traceback" not in result.err


def test_predictions_are_overwritten_knowingly(trained, gmf, photos):
    line = ("predict", "--run", trained.path, "--images", "photos/a.jpg", "--output", "out")
    assert gmf(*line).code == 0
    again = gmf(*line)
    assert again.code == 2
    assert "--output out: holds predictions already" in again.err
    assert gmf(*line, "--overwrite").code == 0
