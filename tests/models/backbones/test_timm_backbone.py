"""timm's networks behind our contract, against timm's own features."""

import json

import pytest
import timm
import torch
from torch import nn

from gmf_platform.errors import UserError
from gmf_platform.models.backbones import TimmBackbone
from gmf_platform.models.norm import BatchNorm, set_norm_mode
from gmf_platform.models.normalize import IMAGENET_MEAN, IMAGENET_STD
from gmf_platform.optim import freeze_stages, layer_numbers

SWIN = "swin_tiny_patch4_window7_224"
# Channels, blocks by stage, and whether a LayerNorm stands behind each map.
NETWORKS = {
    SWIN: ((96, 192, 384, 768), (2, 2, 6, 2), True),
    "convnext_tiny": ((96, 192, 384, 768), (3, 3, 9, 3), True),
    "resnet18": ((64, 128, 256, 512), (2, 2, 2, 2), False),
    "pvt_v2_b0": ((32, 64, 160, 256), (2, 2, 2, 2), False),
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    torch.manual_seed(0)
    return TimmBackbone(request.param)


@pytest.mark.parametrize("size", [(64, 64), (97, 131), (224, 224)])
def test_any_size(network, size):
    channels = NETWORKS[network.name][0]
    assert network.channels == channels
    with torch.no_grad():
        maps = network.eval()(torch.randn(1, 3, *size))
    for map_, width, stride in zip(maps, channels, (4, 8, 16, 32), strict=True):
        assert map_.shape == (1, width, *(-(-side // stride) for side in size))
        assert map_.isfinite().all()


def test_gradient_reaches_every_parameter(network):
    network.train().zero_grad()
    maps = network(torch.randn(2, 3, 97, 131))
    sum((map_ * torch.randn_like(map_)).sum() for map_ in maps).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in network.parameters())


def features_of_timm(network, images, **options):
    """Of a model of timm's own making, with the backbone's weights; NCHW, strides 4 to 32."""
    model = timm.create_model(network.name, features_only=True, **options).eval()
    model.load_state_dict(network.model.state_dict())  # strict: the keys are timm's
    with torch.no_grad():
        maps = model(images)[-4:]
    wide = network.channels
    return [
        m if m.shape[1] == c else m.permute(0, 3, 1, 2) for m, c in zip(maps, wide, strict=True)
    ]


@pytest.mark.parametrize(
    ("name", "size"), [*((name, (224, 224)) for name in NETWORKS), (SWIN, (96, 160))]
)
def test_agrees_with_timms_features(name, size, relative_error):
    torch.manual_seed(0)
    network = TimmBackbone(name, output_norm=False).eval()
    for norm in (m for m in network.modules() if isinstance(m, BatchNorm)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    images = torch.randn(2, 3, *size)
    options = {"strict_img_size": False} if size != (224, 224) else {}
    expected = features_of_timm(network, images, **options)
    with torch.no_grad():
        for ours, theirs in zip(network(images), expected, strict=True):
            assert relative_error(ours, theirs) < 1e-5


def test_training_agrees_with_timms(relative_error):
    """Batch norms in training: outputs, gradients and running statistics."""
    torch.manual_seed(0)
    ours = TimmBackbone("resnet18", options={"zero_init_last": False}).train()
    theirs = timm.create_model("resnet18", features_only=True).train()
    theirs.load_state_dict(ours.model.state_dict())
    images = torch.randn(4, 3, 64, 64)
    for net in (ours, theirs):
        net(images)[-1].square().mean().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.model.named_parameters():
        assert relative_error(parameter.grad, gradients[name]) < 1e-4, name
    buffers = dict(theirs.named_buffers())
    for name, buffer in ours.model.named_buffers():
        torch.testing.assert_close(buffer, buffers[name])


@pytest.mark.parametrize("output_norm", [True, False, "auto"])
@pytest.mark.parametrize("name", ["convnext_tiny", "resnet18"])
def test_norms_behind_the_maps(name, output_norm):
    with torch.device("meta"):
        network = TimmBackbone(name, output_norm=output_norm)
    wanted = NETWORKS[name][2] if output_norm == "auto" else output_norm
    assert all(isinstance(norm, nn.LayerNorm) == wanted for norm in network.norms)


def test_norms_behind_the_maps_normalise_channels():
    with torch.no_grad():
        maps = TimmBackbone("convnext_tiny").eval()(torch.randn(1, 3, 64, 96))
    for map_ in maps:
        torch.testing.assert_close(map_.mean(1), torch.zeros_like(map_[:, 0]), atol=1e-5, rtol=0)
        variances = map_.var(1, unbiased=False)
        torch.testing.assert_close(variances, torch.ones_like(variances), atol=2e-2, rtol=0)


@pytest.mark.parametrize("name", ["resnet18", "pvt_v2_b0", "efficientnet_b0"])
def test_batch_norms_obey_the_norm_mode(name):
    """efficientnet's batch norms have their activation inside."""
    network = TimmBackbone(name)
    plain = timm.create_model(name, features_only=True)
    count = sum(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    ours = [m for m in network.modules() if isinstance(m, BatchNorm)]
    assert len(ours) == count
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    assert network.model.state_dict().keys() == plain.state_dict().keys()
    set_norm_mode(network, "frozen")
    before = [norm.running_mean.clone() for norm in ours]
    network.train()(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(norm.running_mean, b) for norm, b in zip(ours, before, strict=True))


def test_batch_norms_keep_their_settings_and_activation(relative_error):
    network = TimmBackbone("tf_efficientnet_b0").eval()  # eps 1e-3
    norms = [m for m in network.modules() if isinstance(m, BatchNorm)]
    assert {norm.eps for norm in norms} == {1e-3}
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for ours, theirs in zip(network(images), features_of_timm(network, images), strict=True):
            assert relative_error(ours, theirs) < 1e-5


def test_images_are_normalised_as_timms_weights_expect():
    pixels = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) / 255 for v in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.device("meta"):
        plain = TimmBackbone("resnet18")
    assert plain.scale is None
    inception = TimmBackbone("tf_mobilenetv3_small_minimal_100")
    cfg = inception.model.pretrained_cfg
    theirs = [torch.tensor(cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std")]
    given = (pixels - mean) / std * inception.scale + inception.shift
    torch.testing.assert_close(given, (pixels - theirs[0]) / theirs[1])


def test_layers(network):
    depths = NETWORKS[network.name][1]
    stages = network.layers_by_stage()
    assert [len(stage) for stage in stages] == [1, *depths]
    numbers = layer_numbers(network)
    in_none = {name for name, _ in network.named_parameters()} - numbers.keys()
    assert in_none == {name for name, _ in network.norms.named_parameters(prefix="norms")}
    layers = [layer for stage in stages for layer in stage]
    network.eval()
    for cut in (1, 1 + depths[0], sum(depths) - 1):
        network.zero_grad()
        hook = layers[cut][0].register_forward_pre_hook(
            lambda _, args: (args[0].detach(), *args[1:])
        )
        network(torch.randn(1, 3, 64, 64))[-1].square().sum().backward()
        hook.remove()
        names = [name for name, p in network.named_parameters() if p.grad is not None]
        assert {numbers[n] for n in names if n in numbers} == set(range(cut, len(layers)))


def test_frozen_stages(network):
    stages = network.layers_by_stage()
    frozen = freeze_stages(network.train(), 2)
    still = {
        id(p) for stage in stages[:3] for layer in stage for m in layer for p in m.parameters()
    }
    for parameter in network.model.parameters():
        assert parameter.requires_grad == (id(parameter) not in still)
    assert not any(part.training for module in frozen for part in module.modules())
    network.requires_grad_(True)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("swin_tiny_patch4_window8_224", "no model .* did you mean swin_tiny_patch4_window7_224"),
        ("xyz", "no model 'xyz'"),
        ("vit_tiny_patch16_224", "strides 16, 16, 16; a backbone needs 4, 8, 16, 32"),
        ("nest_tiny", "strides 4, 8, 16; a backbone needs"),
        ("coat_lite_mini", "does not take images of 64x96 pixels .*doesn't match model"),
        ("maxvit_tiny_tf_224", "divisible by window.*divisor"),
    ],
)
def test_networks_that_are_no_backbone(name, said):
    with pytest.raises(UserError, match=said):
        TimmBackbone(name)


def test_unknown_options_are_refused():
    with pytest.raises(UserError, match=r"resnet18 with .*no_such.*unexpected keyword"):
        TimmBackbone("resnet18", options={"no_such": 1})


def test_layers_of_parallel_branches_are_refused():
    with torch.device("meta"):
        network = TimmBackbone("hrnet_w18_small")
    with pytest.raises(UserError, match="hrnet_w18_small is not built of stages"):
        network.layers_by_stage()


def test_drop_path_and_options_reach_timm():
    from timm.layers import DropPath

    with torch.device("meta"):
        network = TimmBackbone(SWIN, drop_path=0.3, options={"window_size": 5})
    chances = [m.drop_prob for m in network.modules() if isinstance(m, DropPath)]
    assert max(chances) == pytest.approx(0.3)
    assert tuple(network.model.layers_0.blocks[0].window_size) == (5, 5)


def test_pretrained_is_asked_of_timm(monkeypatch):
    asked = []

    def create_model(name, *, pretrained, **options):
        asked.append(pretrained)
        raise OSError("no network here")

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(UserError, match="no network here"):
        TimmBackbone("resnet18", pretrained=True)
    assert asked == [True]


def test_trains_under_a_tasks_recipe(gmf, sample_ade20k, tmp_path):
    """In place of GroupMixFormer, by an overlay, with layer decay and frozen stages."""
    (tmp_path / "small.yaml").write_text(f"""
init_from: none
model:
  backbone:
    class_path: gmf_platform.models.backbones.TimmBackbone
    init_args: {{name: resnet18}}
  decode_head: {{channels: 16}}
  auxiliary_head: {{channels: 16}}
  norm: train
  layer_decay: 0.8
  frozen_stages: 1
data: {{root: {sample_ade20k}, global_batch_size: 4, crop_size: 64, scale: [256, 64], num_workers: 0}}
trainer: {{max_steps: 2, val_check_interval: 2, num_sanity_val_steps: 0, log_every_n_steps: 1}}
""")
    result = gmf("fit", "--config", "seg_ade20k", "--config", "small.yaml", "--name", "a")
    assert result.code == 0, result.err
    assert json.loads(result.out.splitlines()[-1])["step"] == 2
    result = gmf("validate", "--run", "runs/a")
    assert result.code == 0, result.err
