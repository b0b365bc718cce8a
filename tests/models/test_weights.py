"""Weights files of every origin, good and bad."""

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gmf_platform.errors import UserError
from gmf_platform.models.backbones import GroupMixFormer
from gmf_platform.models.heads import ClassificationHead, FCNHead
from gmf_platform.models.weights import find_variant, load_weights, read_state_dict

SMALL = {"embedding_dims": (10, 10, 20, 20), "depths": (1,) * 4, "mlp_ratios": (2,) * 4}
OF_HEAD = ("norm4.", "head.")


class Classifier(nn.Module):
    def __init__(self, num_classes=7, **layout):
        super().__init__()
        self.backbone = GroupMixFormer(**(layout or SMALL))
        self.head = ClassificationHead(self.backbone.channels, num_classes)


class Segmenter(nn.Module):
    def __init__(self, num_classes=7):
        super().__init__()
        self.backbone = GroupMixFormer(**SMALL)
        self.decode_head = FCNHead(self.backbone.channels, num_classes, channels=8)


def official(model):
    """The state under the names that the authors' files have."""
    return {**model.backbone.state_dict(), **model.head.state_dict()}


def differing(one, other):
    pairs = other.state_dict()
    return {
        name for name, tensor in one.state_dict().items() if not torch.equal(tensor, pairs[name])
    }


@pytest.fixture
def model():
    torch.manual_seed(5)
    model = Classifier()
    model.train().head(model.backbone(torch.randn(2, 3, 64, 64)))  # statistics of its own
    return model


WRITERS = {
    "official.pth": lambda m, path: torch.save({"model": official(m)}, path),
    "ours.ckpt": lambda m, path: torch.save(
        {
            "epoch": 3,
            "state_dict": {
                **{f"model.{name}": t for name, t in m.state_dict().items()},
                "metric.total": torch.zeros(()),
            },
        },
        path,
    ),
    "plain.pth": lambda m, path: torch.save(m.state_dict(), path),
    "old_format.pth": lambda m, path: torch.save(
        official(m), path, _use_new_zipfile_serialization=False
    ),
    "official.safetensors": lambda m, path: save_file(official(m), path),
    "parallel.pth": lambda m, path: torch.save(
        {"model": {f"module.{name}": t for name, t in official(m).items()}}, path
    ),
    "compiled.ckpt": lambda m, path: torch.save(
        {
            "state_dict": {
                f"model.{name.replace('backbone.', 'backbone._orig_mod.')}": t
                for name, t in m.state_dict().items()
            }
        },
        path,
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_origin_fills_the_whole_model(name, model, tmp_path):
    WRITERS[name](model, tmp_path / name)
    other = Classifier()
    report = load_weights(other, tmp_path / name)
    assert not differing(other, model)
    assert set(report.loaded) == set(model.state_dict())
    assert report.skipped == report.missing == report.unused == ()


def test_backbone_alone_under_a_head_of_its_own(model, tmp_path):
    path = tmp_path / "backbone.safetensors"
    save_file(model.backbone.state_dict(), path)
    segmenter = Segmenter()
    report = load_weights(segmenter, str(path))
    assert not differing(segmenter.backbone, model.backbone)
    assert set(report.missing) == {f"decode_head.{n}" for n in segmenter.decode_head.state_dict()}
    assert not report.unused


def test_official_head_without_a_place_is_unused(model, tmp_path):
    WRITERS["official.pth"](model, tmp_path / "official.pth")
    report = load_weights(Segmenter(), tmp_path / "official.pth")
    assert set(report.unused) == set(model.head.state_dict())


def test_head_for_other_classes_is_left_out(model, tmp_path):
    WRITERS["official.pth"](model, tmp_path / "official.pth")
    other = Classifier(num_classes=3)
    before = other.head.head.weight.clone()
    report = load_weights(other, tmp_path / "official.pth")
    assert torch.equal(other.head.head.weight, before)
    assert torch.equal(other.head.norm4.running_var, model.head.norm4.running_var)
    skipped = [(t.name, t.in_file, t.in_model) for t in report.skipped]
    assert skipped == [("head.head.weight", (7, 20), (3, 20)), ("head.head.bias", (7,), (3,))]
    assert str(report).splitlines()[1:] == [
        f"  loaded            backbone ({len(model.backbone.state_dict())}), head (5)",
        "  other size        "
        + "head.head.weight (file 7x20, model 3x20), head.head.bias (file 7, model 3)",
    ]


def test_incomplete_backbone_is_refused_unless_meant(model, tmp_path):
    path = tmp_path / "part.pth"
    some = {name: t for name, t in official(model).items() if not name.startswith("conv_stem")}
    torch.save(some, path)
    other = Classifier()
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(UserError, match=r"12 tensors of the backbone .*backbone\.conv_stem"):
        load_weights(other, path)
    assert all(torch.equal(t, before[name]) for name, t in other.state_dict().items())
    report = load_weights(other, path, allow_partial=True)
    assert {name.split(".")[1] for name in report.missing} == {"conv_stem"}
    assert all(torch.equal(other.state_dict()[name], before[name]) for name in report.missing)
    assert differing(other, model) <= set(report.missing)


def test_missing_batch_counts_are_no_fault(model, tmp_path):
    path = tmp_path / "old.pth"
    torch.save({n: t for n, t in official(model).items() if "num_batches" not in n}, path)
    assert all("num_batches" in name for name in load_weights(Classifier(), path).missing)


def test_missing_blocks_can_be_meant(model, tmp_path):
    path = tmp_path / "stages.pth"
    torch.save({n: t for n, t in official(model).items() if "backbone.3" not in n}, path)
    with pytest.raises(UserError, match="GroupMixFormer of its own"):
        load_weights(Classifier(), path)
    report = load_weights(Classifier(), path, allow_partial=True)
    assert all("groupmixformer_backbone.3" in name for name in report.missing)


@pytest.mark.parametrize("variant", ["mobile", "tiny", "small", "base", "large"])
def test_find_variant(variant):
    with torch.device("meta"):
        backbone = GroupMixFormer(variant)
    assert find_variant(backbone.state_dict()) == variant
    assert find_variant(nn.ModuleDict({"backbone": backbone}).state_dict()) == variant


def test_find_variant_of_other_networks():
    assert find_variant(GroupMixFormer(**SMALL).state_dict()) is None
    assert find_variant({"conv1.weight": torch.zeros(3)}) is None
    with torch.device("meta"):
        assert find_variant(GroupMixFormer("tiny", depths=(4, 4, 11, 4)).state_dict()) is None


def test_another_variant_is_refused_by_name(tmp_path):
    path = tmp_path / "mobile.pth"
    torch.save({"model": GroupMixFormer("mobile").state_dict()}, path)
    with torch.device("meta"):
        tiny = Classifier(variant="tiny")
    message = (
        r"file holds GroupMixFormer mobile \(dims 40-80-160-160, .* the model is GroupMixFormer "
        r"tiny \(dims 80-160-200-240, .*--model\.backbone\.variant mobile"
    )
    for allow_partial in (False, True):
        with pytest.raises(UserError, match=message):
            load_weights(tiny, path, allow_partial=allow_partial)


class Mine:
    """What unpickling would run: it leaves a folder behind."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_named_and_never_run(zipped, tmp_path):
    path, trace = tmp_path / "bad.pth", tmp_path / "trace"
    content = {"model": {"a": torch.ones(1)}, "config": Mine(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        UserError, match=r"refused.*asks to call posix\.mkdir.*only tensors and plain"
    ):
        read_state_dict(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()  # so the file was able to


@pytest.mark.parametrize(
    ("protocol", "said"),
    [(2, r"refused.*posix\.mkdir"), (4, r"bad\.pkl: refused, nothing was run.*a pickle that")],
)
@pytest.mark.filterwarnings("error")
def test_a_bare_pickle_is_not_run(protocol, said, tmp_path):
    path, trace = tmp_path / "bad.pkl", tmp_path / "trace"
    path.write_bytes(pickle.dumps({"model": Mine(trace)}, protocol=protocol))
    with pytest.raises(UserError, match=said):
        read_state_dict(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.pth", b"hello"),
        ("empty.pth", b""),
        ("text.safetensors", b"hello"),
        ("page.pth", b"<!DOCTYPE html><html>Sign in</html>"),
    ],
)
def test_damaged_files_are_named(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: not a readable"):
        read_state_dict(tmp_path / name)


def test_a_file_cut_short_is_named(model, tmp_path):
    path = tmp_path / "cut.pth"
    WRITERS["official.pth"](model, path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(UserError, match="damaged") as caught:
        read_state_dict(path)
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("content", [{"epoch": 3}, [torch.ones(1)], {"model": {"lr": 0.1}}])
def test_files_without_named_tensors(content, tmp_path):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(UserError, match="no tensors found by name"):
        read_state_dict(tmp_path / "file.pth")


def test_absent_files_and_folders(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_state_dict(tmp_path / "none.pth")
    with pytest.raises(UserError, match="is a folder"):
        read_state_dict(tmp_path)
