"""export from the command line, and what it wrote used as others would."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import gmf_platform
from gmf_platform.cli.main import main


@pytest.fixture
def photos(sample_ade20k):
    return sorted((sample_ade20k / "images" / "validation").iterdir())


def test_what_is_refused_at_once(gmf, trained, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for words, said in (
        (("file",), "is a file"),
        (("full",), "is not empty"),
        (("new", "--images", "none.jpg"), "no such file, or no images"),
        (("new", "--task", "seg"), "--task seg: there is no such task; the model is of one task"),
    ):
        result = gmf("export", trained.path, *words)
        assert result.code == 2
        assert said in result.err
    assert not (tmp_path / "new").exists()


def test_what_is_not_installed(gmf, trained, monkeypatch):
    from gmf_platform.deploy import export

    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxruntime" else "")
    result = gmf("export", trained.path, "out")
    assert result.code == 2
    assert "onnxruntime not installed: pip install 'gmf_platform[export]'" in result.err


def test_real_images_are_needed(gmf, trained, sample_ade20k, monkeypatch, tmp_path):
    from gmf_platform.deploy import trained as api

    built = api._built

    def elsewhere(kind, settings, checkpoint):
        if "root" in settings["init_args"]:
            settings["init_args"]["root"] = "/none"
        return built(kind, settings, checkpoint)

    monkeypatch.setattr(api, "_built", elsewhere)
    result = gmf("export", trained.path, "out")
    assert result.code == 2
    assert "name some with --images" in result.err


@pytest.mark.slow
def test_segmentation(trained, photos, tmp_path, monkeypatch, capsys):
    """Both formats, and run.py with nothing of ours on the path."""
    monkeypatch.chdir(tmp_path)
    words = ["export", str(trained.path), "out", "--format", "onnx", "torch_export"]
    assert main([*words, "--licence", "CC0"]) == 0
    said = capsys.readouterr().out
    assert "agrees with PyTorch on 4 images" in said
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["README.md", "model.onnx", "model.pt2", "run.py"]
    card = (tmp_path / "out" / "README.md").read_text()
    for part in ("miou", "CC0", "grass", "datamodules.ADE20K", "labels"):
        assert part in card
    result = run_script(tmp_path / "out" / "run.py", photos[0], tmp_path)
    model = gmf_platform.load(trained.path, device="cpu")
    expected = model.predict(photos[0])
    labels = np.asarray(Image.open(tmp_path / "seen" / f"{photos[0].stem}.png"))
    assert (labels == expected.labels).mean() > 0.95  # edges are enlarged another way
    assert set(result["shares"]) <= set(model.class_names)


def run_script(script, photo, folder):
    """Run run.py where our packages cannot be imported."""
    absent = "import sys; sys.modules.update(dict.fromkeys(('torch', 'cv2', 'gmf_platform')))"
    code = f"{absent}; import runpy; runpy.run_path({str(script)!r}, run_name='__main__')"
    words = [sys.executable, "-c", code, str(photo), "--output", "seen"]
    done = subprocess.run(words, check=False, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
