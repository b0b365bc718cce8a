"""The batch norm against PyTorch's, in one process and in two."""

import multiprocessing

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from gmf_platform.errors import UserError
from gmf_platform.models.backbones import GroupMixFormer
from gmf_platform.models.norm import (
    BatchNorm,
    BatchTooSmallError,
    set_norm_mode,
    split_statistics,
    statistics_estimated,
    statistics_kept,
)

CHANNELS = 6


def make_pair(mode="sync"):
    """A norm of ours and PyTorch's, alike and with statistics that are not the initial ones."""
    theirs = nn.BatchNorm2d(CHANNELS)
    with torch.no_grad():
        for tensor in (theirs.weight, theirs.bias, theirs.running_mean, theirs.running_var):
            tensor.uniform_(0.5, 2)
    ours = BatchNorm(CHANNELS, mode=mode)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def run(module, x, weights):
    x = x.clone().requires_grad_()
    y = module(x)
    (y * weights).sum().backward()
    return [y, x.grad, module.weight.grad, module.bias.grad, *module.buffers()]


@pytest.mark.parametrize("mode", ["sync", "train"])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_one_process_is_exactly_pytorch(mode, memory):
    ours, theirs = make_pair(mode)
    x = torch.randn(3, CHANNELS, 4, 5).contiguous(memory_format=memory)
    weights = torch.randn_like(x)
    for training in (True, False):
        pair = zip(
            run(ours.train(training), x, weights),
            run(theirs.train(training), x, weights),
            strict=True,
        )
        assert all(torch.equal(a, b) for a, b in pair)


@pytest.mark.parametrize("mode", ["sync", "frozen"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_product", [True, False])
def test_a_hardswish_and_a_product_are_taken_in(mode, training, with_product, relative_error):
    ours, theirs = make_pair(mode)
    ours.double().train(training)
    theirs.double().train(training and mode == "sync")
    weight = torch.randn(CHANNELS, 4 if with_product else CHANNELS).double().requires_grad_()
    x = torch.randn(2, 3, 5, weight.shape[1], dtype=torch.float64, requires_grad=True)
    before = weight if with_product else None
    y = ours.forward_tokens(x, weight_before=before, hardswish=True)
    products = x @ weight.T if with_product else x
    expected = F.hardswish(theirs(products.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
    assert relative_error(y, expected) < 1e-14

    inputs = [x, *([weight] if with_product else [])]
    direction = torch.randn_like(y)
    gradients = torch.autograd.grad(y, [*inputs, ours.weight, ours.bias], direction)
    references = torch.autograd.grad(expected, [*inputs, theirs.weight, theirs.bias], direction)
    for gradient, reference in zip(gradients, references, strict=True):
        assert relative_error(gradient, reference) < 1e-13
    for buffer, reference in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(buffer, reference)

    with torch.no_grad():
        again = ours.eval().forward_tokens(x, weight_before=before, hardswish=True)
        expected = F.hardswish(theirs.eval()(products.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
    assert relative_error(again, expected) < 1e-14


def test_fast_inference_takes_the_statistics_in_use(relative_error):
    norm, _ = make_pair()
    norm.double().eval()
    split_statistics(norm, ["other"])
    norm.running_mean_other += 3
    x, weight = torch.randn(2, 5, 4).double(), torch.randn(CHANNELS, 4).double()
    for used in ("", "other"):
        norm.used_statistics = used
        with torch.no_grad():
            y = norm.forward_tokens(x, weight_before=weight, hardswish=True)
            expected = F.hardswish(norm.forward_tokens(x @ weight.T))
        assert relative_error(y, expected) < 1e-14


def test_statistics_are_estimated_of_what_a_product_gives(relative_error):
    norm, theirs = make_pair()
    norm.double().eval()
    theirs.double().momentum = 1.0
    x, weight = torch.randn(50, 4).double(), torch.randn(CHANNELS, 4).double()
    with torch.no_grad(), statistics_estimated(norm):
        y = norm(x, weight_before=weight, hardswish=True)
    expected = F.hardswish(theirs((x @ weight.T)[..., None, None])).squeeze()
    assert relative_error(y, expected) < 1e-14
    assert relative_error(norm.running_mean, theirs.running_mean) < 1e-14


def test_state_has_pytorchs_names():
    assert list(BatchNorm(3).state_dict()) == list(nn.BatchNorm2d(3).state_dict())


def test_tokens_are_images_channels_last(relative_error):
    ours, theirs = make_pair()
    tokens = torch.randn(2, 4, 5, CHANNELS)
    expected = theirs(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert relative_error(ours.forward_tokens(tokens), expected) < 1e-6
    assert relative_error(ours.running_var, theirs.running_var) < 1e-6


def test_frozen_trains_weight_and_bias_only(relative_error):
    ours, theirs = make_pair("frozen")
    x = torch.randn(2, CHANNELS, 3, 3)
    before = [buffer.clone() for buffer in ours.buffers()]
    assert relative_error(ours.train()(x), theirs.eval()(x)) < 1e-6
    ours(x).square().sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, ours.buffers(), strict=True))
    assert ours.weight.grad.norm() > 0
    assert ours.bias.grad.norm() > 0


def test_one_value_per_channel_is_refused_with_the_remedy():
    norm = BatchNorm(CHANNELS)
    single = torch.randn(1, CHANNELS, 1, 1)
    with pytest.raises(BatchTooSmallError, match="norm: frozen") as caught:
        norm(single)
    assert isinstance(caught.value, UserError)
    norm.mode = "frozen"
    assert norm(single).shape == single.shape
    assert BatchNorm(CHANNELS).eval()(single).shape == single.shape


def test_set_norm_mode_reaches_every_norm():
    net = nn.Sequential(BatchNorm(3), nn.Sequential(nn.ReLU(), BatchNorm(4)))
    set_norm_mode(net, "frozen")
    assert net[0].mode == net[1][1].mode == "frozen"


def test_statistics_kept_ends_with_its_block():
    norm, theirs = make_pair()
    x = torch.randn(2, CHANNELS, 3, 3)

    def fail_inside():
        with statistics_kept(norm):
            assert torch.equal(norm(x), theirs(x))
            raise KeyError

    before = norm.running_mean.clone()
    with pytest.raises(KeyError):
        fail_inside()
    assert torch.equal(norm.running_mean, before)
    assert norm.num_batches_tracked == 0
    norm(x)
    assert torch.equal(norm.running_mean, theirs.running_mean)
    assert norm.num_batches_tracked == 1


def test_bfloat16_input_has_float32_statistics(relative_error):
    ours, theirs = make_pair()
    x = (torch.randn(64, CHANNELS, 16, 16) + 4).bfloat16()
    y = ours(x)
    theirs(x.float())
    assert y.dtype == torch.bfloat16
    assert relative_error(ours.running_mean, theirs.running_mean) < 1e-5
    assert relative_error(ours.running_var, theirs.running_var) < 1e-5


# Two processes with unequal shares of one batch, against one process with all of it.

SHARES = (slice(0, 2), slice(2, 5))


def whole_batch():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, CHANNELS, 3, 4, generator=generator) * 2 + 30
    return x, torch.randn(x.shape, generator=generator)


def small_backbone():
    torch.manual_seed(2)
    net = GroupMixFormer(
        drop_path=0.0,  # which ranks draw differently
        checkpointing=True,
        embedding_dims=(10, 10, 20, 20),
        depths=(1,) * 4,
        mlp_ratios=(2,) * 4,
    )
    images = torch.randn(5, 3, 64, 64)
    return net, images


def train_backbone(net, images):
    sum(map_.square().sum() for map_ in net(images)).backward()
    return [parameter.grad for parameter in net.parameters()], list(net.buffers())


def rank_main(rank, folder):
    """One of the two processes: leaves its results in ``folder``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    x, weights = whole_batch()
    torch.manual_seed(0)
    norm, _ = make_pair()
    synced = run(norm, x[SHARES[rank]], weights[SHARES[rank]])
    torch.manual_seed(0)
    local, _ = make_pair("train")
    alone = run(local, x[SHARES[rank]], weights[SHARES[rank]])
    with statistics_kept(norm):
        norm(x[SHARES[rank]])
    net, images = small_backbone()
    backbone = train_backbone(net, images[SHARES[rank]])
    torch.save((synced, alone, int(norm.num_batches_tracked), backbone), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=rank_main, args=(rank, folder)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=200)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in ranks] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_two_ranks_equal_the_joined_batch(two_ranks, relative_error):
    torch.manual_seed(0)
    _, theirs = make_pair()
    y, grad_x, grad_weight, grad_bias, mean, var, count = run(theirs, *whole_batch())
    (first, *_), (second, *_) = two_ranks
    assert relative_error(torch.cat([first[0], second[0]]), y) < 1e-5
    assert relative_error(torch.cat([first[1], second[1]]), grad_x) < 1e-5
    assert relative_error(first[2] + second[2], grad_weight) < 1e-5
    assert relative_error(first[3] + second[3], grad_bias) < 1e-5
    for rank in (first, second):
        assert relative_error(rank[4], mean) < 1e-5
        assert relative_error(rank[5], var) < 1e-5
        assert rank[6] == count


def test_train_mode_keeps_ranks_apart(two_ranks, relative_error):
    x, weights = whole_batch()
    for (_, alone, *_), share in zip(two_ranks, SHARES, strict=True):
        torch.manual_seed(0)
        _, theirs = make_pair()
        for value, expected in zip(alone, run(theirs, x[share], weights[share]), strict=True):
            assert relative_error(value.float(), expected.float()) < 1e-6


def test_kept_statistics_stay_on_two_ranks(two_ranks):
    assert [count for _, _, count, _ in two_ranks] == [1, 1]


def test_checkpointed_backbone_on_two_ranks(two_ranks, relative_error):
    net, images = small_backbone()
    gradients, buffers = train_backbone(net, images)
    (*_, (first, first_buffers)), (*_, (second, _)) = two_ranks
    whole = torch.stack([gradient.norm() for gradient in gradients]).norm()
    for a, b, expected in zip(first, second, gradients, strict=True):
        # 1e-6 of the whole: the bias before a norm has a true gradient of 0.
        assert (a + b - expected).norm() < 1e-4 * expected.norm() + 1e-6 * whole
    for value, expected in zip(first_buffers, buffers, strict=True):
        assert relative_error(value.float(), expected.float()) < 1e-5
