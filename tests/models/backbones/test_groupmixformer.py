"""The backbone against numbers of the authors' implementation, and in every way it is run."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gmf_platform.errors import UserError
from gmf_platform.models.backbones import GroupMixAttention, GroupMixFormer
from gmf_platform.models.heads import ClassificationHead
from gmf_platform.models.norm import BatchNorm, set_norm_mode

# README of github.com/AILab-CVC/GroupMixFormer: 5.7, 11.0, 22.4, 45.8 M; exact numbers and the
# one of large (whose layout there is not that of the table's 70.3 M) counted with the authors' code.
PARAMETERS = {
    "mobile": 5_733_120,
    "tiny": 10_949_152,
    "small": 22_421_320,
    "base": 45_827_272,
    "large": 71_833_648,
}


def small_net(**options):
    torch.manual_seed(0)
    options = {"drop_path": 0.0, "depths": (1, 1, 2, 1), **options}
    return GroupMixFormer(embedding_dims=(10, 20, 20, 30), mlp_ratios=(2, 2, 1.5, 2), **options)


def train_once(net, images, run=None):
    """Gradients and buffers after one training step's forward and backward."""
    torch.manual_seed(1)
    net.train()
    sum(map_.square().mean() for map_ in (net if run is None else run)(images)).backward()
    gradients = {name: p.grad for name, p in net.named_parameters()}
    return gradients, dict(net.named_buffers())


def assert_same_training(one, other, tolerance=1e-5):
    (gradients, buffers), (expected, expected_buffers) = one, other
    whole = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        bound = tolerance * gradient.norm() + 1e-6 * whole
        assert (gradients[name] - gradient).norm() <= bound, name
    for name, buffer in expected_buffers.items():
        torch.testing.assert_close(buffers[name], buffer, rtol=1e-5, atol=1e-6)


@pytest.fixture(params=["groupmixformer_a", "groupmixformer_b"])
def reference(request, read_reference):
    return read_reference(request.param)


def build(reference, **options):
    """The reference's backbone and head, with its weights."""
    backbone = GroupMixFormer(
        drop_path=0.0,
        embedding_dims=reference.setting("embedding_dims"),
        depths=reference.setting("serial_depths"),
        mlp_ratios=reference.setting("mlp_ratios"),
        **options,
    )
    head = ClassificationHead(backbone.channels, reference.setting("num_classes"))
    weights = reference.group("weights/")
    of_head = {name: weights.pop(name) for name in head.state_dict()}
    # Strict: the names are exactly the authors'.
    backbone.load_state_dict(weights)
    head.load_state_dict(of_head)
    return backbone, head


def test_features_and_logits_of_the_reference(reference):
    backbone, head = (part.eval() for part in build(reference))
    features = backbone(reference["input"])
    for i, feature in enumerate(features):
        assert reference.error(f"eval/feature_{i}", feature) < 3e-5
        assert feature.is_contiguous(memory_format=torch.channels_last)
    assert reference.error("eval/logits", head(features)) < 3e-5


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_step_of_the_reference(reference, checkpointing):
    backbone, head = build(reference, checkpointing=checkpointing)
    logits = head(backbone(reference["input"]))
    F.cross_entropy(logits, reference["target"]).backward()
    assert reference.error("train/logits", logits) < 3e-5

    both = nn.ModuleList([backbone, head])
    gradients = {name[2:]: p.grad for name, p in both.named_parameters()}
    expected = reference.group("grad/")
    assert gradients.keys() == expected.keys()
    whole = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        bound = 1e-4 * gradient.norm() + 1e-6 * whole
        assert (gradients[name] - gradient).norm() < bound, name

    buffers = {name[2:]: b for name, b in both.named_buffers()}
    for name in reference.group("train/"):
        if "running" in name:
            assert reference.error(f"train/{name}", buffers[name]) < 1e-5
        elif name.endswith("num_batches_tracked"):
            assert buffers[name] == 1


@pytest.mark.parametrize("variant", PARAMETERS)
def test_parameter_counts(variant):
    with torch.device("meta"):
        backbone = GroupMixFormer(variant)
        head = ClassificationHead(backbone.channels, 1000)
    assert (
        sum(p.numel() for p in nn.ModuleList([backbone, head]).parameters()) == PARAMETERS[variant]
    )


@pytest.mark.parametrize("size", [(64, 64), (65, 127), (97, 203), (225, 225), (800, 1333)])
def test_any_size(size):
    net = small_net().eval()
    with torch.no_grad():
        maps = net(torch.randn(1, 3, *size))
    for map_, channels, stride in zip(maps, net.channels, net.strides, strict=True):
        height, width = (-(-side // stride) for side in size)
        assert map_.shape == (1, channels, height, width)
        assert map_.isfinite().all()


def test_layout_of_the_images_changes_nothing():
    net = small_net().eval()
    images = torch.randn(2, 3, 70, 90)
    pairs = zip(net(images), net(images.to(memory_format=torch.channels_last)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_small_images_are_refused():
    with pytest.raises(UserError, match=r"63x80.*at least 64x64"):
        small_net()(torch.randn(1, 3, 63, 80))


def test_layouts_of_other_than_four_stages_are_refused():
    with pytest.raises(UserError, match="one number for each stage"):
        GroupMixFormer("tiny", depths=(1, 1, 1))
    with pytest.raises(UserError, match="one number for each stage"):
        GroupMixFormer("tiny", embedding_dims=())


def test_drop_path_grows_linearly_to_the_variants():
    def chances(net):
        return [b.drop_path.drop_prob for s in net.groupmixformer_backbone for b in s.gma_stage]

    assert chances(small_net(drop_path=0.4)) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert chances(small_net(drop_path=None, variant="base")) == pytest.approx(
        [0, 0.125, 0.25, 0.375, 0.5]
    )
    assert chances(small_net(depths=(1, 0, 0, 0), drop_path=0.3)) == [0]


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_sizes": [1, 3, 7], "aggregated": "kv"},
        {"relative_positions": False},
        {"local_branch": False, "embedding_dims": (16, 24, 24, 32)},
    ],
    ids=str,
)
def test_ablations_reach_every_block(options):
    torch.manual_seed(0)
    net = GroupMixFormer(**{"embedding_dims": (20,) * 4, "depths": (1, 2, 1, 1), **options})
    alone = {k: v for k, v in options.items() if k != "embedding_dims"}
    for stage, dim in zip(net.groupmixformer_backbone, net.channels, strict=True):
        for block in stage.gma_stage:
            expected = GroupMixAttention(dim, **alone)
            shapes = {name: t.shape for name, t in expected.state_dict().items()}
            assert {name: t.shape for name, t in block.att.state_dict().items()} == shapes
            assert block.att.aggregator.places == expected.aggregator.places
    sum(map_.square().mean() for map_ in net(torch.randn(2, 3, 64, 64))).backward()
    assert all(p.grad is not None for p in net.parameters())


def test_initial_weights():
    net = GroupMixFormer("mobile")
    stage = net.groupmixformer_backbone[2].gma_stage[0]
    assert stage.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not stage.att.qkv.bias.any()
    assert stage.att.aggregator.agg0.norm.eps == 1e-5
    assert stage.norm1.eps == 1e-6


def test_checkpointing_changes_nothing():
    images = torch.randn(3, 3, 64, 96)
    plain, saving = (small_net(drop_path=0.5, checkpointing=on) for on in (False, True))
    assert_same_training(train_once(saving, images), train_once(plain, images))
    assert all(m.num_batches_tracked == 1 for m in saving.modules() if isinstance(m, BatchNorm))


def test_checkpointing_saves_memory():
    def saved_bytes(net):
        seen = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        images = torch.randn(2, 3, 128, 128)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            maps = net.train()(images)
        assert maps
        return sum(seen.values())

    assert saved_bytes(small_net(checkpointing=True)) < 0.5 * saved_bytes(small_net())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiles_whole_without_graph_breaks(checkpointing, relative_error):
    net = small_net(depths=(1, 1, 1, 1), checkpointing=checkpointing)
    twin = copy.deepcopy(net)
    images = torch.randn(2, 3, 64, 64)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    assert_same_training(train_once(net, images, run=compiled), train_once(twin, images))
    net.eval()
    twin.eval()
    with torch.no_grad():
        for a, b in zip(compiled(images), twin(images), strict=True):
            assert relative_error(a, b) < 1e-5


@pytest.mark.slow
def test_compiles_to_machine_code(run_processes):
    """In a process of its own: tests that fork may stand behind it, and before it."""

    def compare(rank):
        net = small_net(depths=(1, 1, 1, 1), checkpointing=True)
        twin = copy.deepcopy(net)
        images = torch.randn(2, 3, 64, 64)
        compiled = torch.compile(net, fullgraph=True)
        assert_same_training(train_once(net, images, run=compiled), train_once(twin, images), 1e-4)

    run_processes(compare, 1)


def test_bfloat16_autocast(relative_error):
    net = small_net()
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        expected = net.eval()(images)
    with torch.autocast("cpu", torch.bfloat16):
        for value, map_ in zip(net(images), expected, strict=True):
            assert value.dtype == torch.bfloat16
            assert relative_error(value.float(), map_) < 0.03
        gradients, buffers = train_once(net, images)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    statistics = [b for name, b in buffers.items() if "running" in name]
    assert {b.dtype for b in statistics} == {torch.float32}


def test_parameters_in_bfloat16_beside_buffers_in_float32(relative_error):
    """What mixed-precision sharding makes of a module."""
    net = small_net().eval()
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        expected = net(images)
    for parameter in net.parameters():
        parameter.data = parameter.data.bfloat16()
    for value, map_ in zip(net(images.bfloat16()), expected, strict=True):
        assert relative_error(value.float(), map_) < 0.03
    gradients, buffers = train_once(net, images.bfloat16())
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    statistics = [b for name, b in buffers.items() if "running" in name]
    assert {b.dtype for b in statistics} == {torch.float32}


def test_frozen_norms_keep_their_statistics():
    net = small_net()
    set_norm_mode(net, "frozen")
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    gradients, buffers = train_once(net, torch.randn(1, 3, 64, 64))
    assert all(torch.equal(buffers[name], buffer) for name, buffer in before.items())
    assert all(gradient is not None and gradient.any() for gradient in gradients.values())


def test_batch_too_small_for_the_norm_says_so():
    head = ClassificationHead((10, 20), 3)
    with pytest.raises(UserError, match="larger batch"):
        head([torch.randn(1, 10, 2, 2), torch.randn(1, 20, 1, 1)])
