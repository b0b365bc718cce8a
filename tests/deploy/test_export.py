import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.torch_version import TorchVersion

import gmf_platform
from gmf_platform.deploy import export, run_exported
from gmf_platform.deploy.agreement import Disagreement
from gmf_platform.deploy.export import _refuse_nothing, exported, traced
from gmf_platform.deploy.graphs import Graph, graph_of
from gmf_platform.deploy.run_exported import Model, main
from gmf_platform.errors import UserError
from gmf_platform.models.backbones import TimmBackbone
from gmf_platform.tasks import ClassificationTask

SIZES = [(97, 130), (64, 64), (128, 160), (200, 301)]


def coarse(height, width):
    draw = np.random.default_rng(height)
    small = Image.fromarray(draw.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classification", "detection"])
def test_files_agree_at_any_size(save, tmp_path, kind):
    """Both formats; and run.py says of photographs what the model says."""
    _, path = save(kind)
    model = gmf_platform.load(path, device="cpu")
    graph = graph_of(model.task.model)
    program = traced(graph)
    sizes = [[max(graph.least, side) for side in size] for size in SIZES]
    images = [torch.from_numpy(np.array(coarse(*size)))[None] for size in sizes]
    about = {
        "task": graph.task,
        "class_names": model.class_names,
        "colours": [[9, 9, 9]] * 7,
        "resizing": model.datamodule.resizing(),
        "min_score": 0.1,
        "least": graph.least,
    }
    for form in ("torch_export", "onnx"):
        file = exported(
            program, form, tmp_path, graph=graph, model=model.task.model, about=about, images=images
        )
        assert file.difference < 1e-4
        assert file.megabytes == pytest.approx(file.path.stat().st_size / 1e6)
        assert min(file.seconds, file.torch_seconds) > 0

    alone = Model(tmp_path / "model.onnx", ["CPUExecutionProvider"])
    for size in sizes:  # a smaller image is padded more by the file than by the model
        picture = coarse(*size)
        ours, theirs = model.predict(picture), alone(picture)
        if kind == "classification":
            assert [name for name, _ in theirs["classes"]] == ours.names
            assert [x for _, x in theirs["classes"]] == pytest.approx(ours.probabilities, abs=1e-3)
        else:
            ours = ours.above(0.1)
            assert len(theirs["objects"]) == len(ours.names)
            for x in theirs["objects"]:  # in any order: scores are close
                alike = np.array(ours.names) == x["name"]
                gaps = np.abs(np.clip(x["box"], 0, size[::-1] * 2) - ours.boxes[alike])
                assert gaps.max(axis=1, initial=0).min(initial=9) < 0.1


@pytest.mark.skipif(
    TorchVersion(torch.__version__) < "2.15",
    reason="torch 2.11 cannot trace maps that are cut; those between it and 2.15 were not tried",
)
def test_a_network_of_timm_at_any_size(tmp_path):
    """Its maps are cut, by a division that ONNX must make alike."""
    torch.manual_seed(0)
    task = ClassificationTask([*"abc"], backbone=TimmBackbone("resnet18")).eval()
    nn.init.normal_(task.model.head.head.weight)
    graph = graph_of(task.model)
    file = exported(
        traced(graph),
        "onnx",
        tmp_path,
        graph=graph,
        model=task.model.requires_grad_(False),
        about={"min_score": 0.3},
        images=[torch.from_numpy(np.array(coarse(*size)))[None] for size in SIZES],
    )
    assert file.difference < 1e-4


@pytest.mark.parametrize("error", [0.0, 0.01])
def test_a_file_that_differs_is_refused(tasks, tmp_path, monkeypatch, error):
    """With a writer whose file gives every probability an error, of a batch only."""
    model = tasks("classification").model
    graph = graph_of(model)

    def write(program, path, outputs, about):
        path.write_bytes(b"12")
        return lambda x: {"probabilities": graph(x)[0].numpy() + error * (len(x) > 1)}

    monkeypatch.setitem(export._WRITERS, "onnx", write)
    images = [torch.from_numpy(np.array(coarse(64, 70)))[None]]
    words = {"graph": graph, "model": model, "about": {"min_score": 0.3}, "images": images}
    if error:
        with pytest.raises(Disagreement, match=r"a probability by 0\.01"):
            exported(None, "onnx", tmp_path, **words)
    else:
        assert exported(None, "onnx", tmp_path, **words).megabytes == 2e-6


def test_nothing_to_compare():
    graph = Graph()
    graph.task = "detection"
    few = {"scores": np.array([[0.2, 0.0]])}
    with pytest.raises(UserError, match=r"nothing on the images scores 0.3 \(the best is 0.20\)"):
        _refuse_nothing(graph, [few], 0.3)
    _refuse_nothing(graph, [few, {"scores": np.array([[0.31, 0.2]])}], 0.3)


def test_what_cannot_be_traced():
    class Undecided(Graph):
        def forward(self, images):
            return (images.float() if images.float().mean() > 3 else images,)

    with pytest.raises(UserError, match=r"torch.export cannot trace this model: "):
        traced(Undecided())


def test_the_script_spares_its_images(tmp_path, monkeypatch, capsys):
    """It would write labels as NAME.png."""
    photo = tmp_path / "a.png"
    coarse(64, 64).save(photo)
    before = photo.read_bytes()
    words = ["run.py", str(photo), "--output", str(tmp_path), "--model", "none.onnx"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit):
        main()
    assert "a.png is one of the images: name another folder" in capsys.readouterr().err
    assert photo.read_bytes() == before


def test_the_script_passes_over_what_it_cannot_predict(tmp_path, monkeypatch, capsys):
    class Whole:
        def __init__(self, path):
            self.min_score = None

        def __call__(self, image):
            if image.width < 64:
                raise ValueError("too small")
            return {"classes": [self.min_score]}

    monkeypatch.setattr(run_exported, "Model", Whole)
    (tmp_path / "a.jpg").write_text("no picture")
    coarse(9, 9).save(tmp_path / "b.png")
    coarse(64, 64).save(tmp_path / "c.png")
    files = [str(tmp_path / name) for name in ("a.jpg", "b.png", "c.png")]
    words = ["run.py", *files, "--output", str(tmp_path / "out"), "--min-score", "0.7"]
    monkeypatch.setattr("sys.argv", words)
    assert main() == 1
    said = capsys.readouterr()
    assert json.loads(said.out) == {"file": files[2], "classes": [0.7]}
    first, second = said.err.splitlines()
    assert first.startswith(f"error: {files[0]}: cannot identify")
    assert second == f"error: {files[1]}: too small"


def test_the_script_resizes_as_the_evaluation_does(save):
    """Without a session: against each task's own data."""

    class Unopened(Model):
        def __init__(self, resizing):
            self.resizing = resizing

    for kind in ("classification", "segmentation", "detection"):
        data = gmf_platform.load(save(kind)[1], device="cpu").datamodule
        script = Unopened(json.loads(json.dumps(data.resizing())))
        for size in (*SIZES, (40, 50), (301, 90)):
            picture = np.array(coarse(*size))
            (batch,) = data.predict_loader([picture])
            height, width = batch["sizes"][0].tolist()
            expected = batch["images"][0, :, :height, :width].permute(1, 2, 0).numpy()
            ours = script.prepared(picture)
            assert np.array_equal(ours, expected)
