"""The classifier: what its parts are given, and the authors' files in it."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from gmf_platform.models.backbones import GroupMixFormer
from gmf_platform.models.batch_augment import BatchAugment
from gmf_platform.models.classifier import Classifier
from gmf_platform.models.heads import ClassificationHead
from gmf_platform.models.normalize import Normalize
from gmf_platform.models.weights import load_weights


def make(num_classes=5, **settings):
    torch.manual_seed(0)
    settings = {"embedding_dims": (10, 10, 20, 20), "depths": (1,) * 4, **settings}
    backbone = GroupMixFormer(drop_path=0.0, **settings)
    return Classifier(backbone, ClassificationHead(backbone.channels, num_classes))


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (4, 3, 70, 97), generator=generator, dtype=torch.uint8)


@torch.no_grad()
def test_is_its_parts_in_a_row(images):
    model = make().eval()
    logits = model(images)
    assert logits.shape == (4, 5)
    assert torch.equal(logits, model.head(model.backbone(Normalize()(images))))


@torch.no_grad()
def test_augments_normalised_images(images):
    model, seen = make().eval(), []

    def mirror(x):
        seen.append(x)
        return x.flip(3)

    logits = model(images, mirror)
    assert torch.equal(seen[0], Normalize()(images))
    assert torch.equal(logits, model(images.flip(3)))


def test_names_of_the_parts():
    assert {name.split(".")[0] for name in make().state_dict()} == {"backbone", "head"}


def test_is_compiled_once_for_all_draws(images):
    torch._dynamo.reset()
    model, augment, counter = make(), BatchAugment(), CompileCounter()
    model.compile(backend=counter, fullgraph=True)
    for _ in range(8):  # mixup, CutMix and boxes anywhere
        model(images, augment.draw(images).of_images)
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", ["groupmixformer_a", "groupmixformer_b"])
def test_a_file_of_the_authors(name, read_reference, tmp_path):
    reference = read_reference(name)
    torch.save({"model": reference.group("weights/")}, tmp_path / "official.pth")
    layout = {key: reference.setting(key) for key in ("embedding_dims", "mlp_ratios")}
    depths, classes = (reference.setting(key) for key in ("serial_depths", "num_classes"))
    model = make(classes, depths=depths, **layout).eval()
    report = load_weights(model, tmp_path / "official.pth")
    assert set(report.loaded) == set(model.state_dict())
    assert (report.missing, report.skipped, report.unused) == ((), (), ())
    model.normalize = torch.nn.Identity()  # the reference's input is normalised
    with torch.no_grad():
        logits = model(reference["input"])
    torch.testing.assert_close(logits, reference["eval/logits"], atol=1e-5, rtol=1e-5)

    # With other classes the norm before the head is taken all the same.
    other = make(3, depths=depths, **layout)
    report = load_weights(other, tmp_path / "official.pth")
    assert {tensor.name for tensor in report.skipped} == {"head.head.weight", "head.head.bias"}
    assert torch.equal(other.head.norm4.running_var, model.head.norm4.running_var)
