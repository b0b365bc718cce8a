"""The moving average against timm's and its formula, whole, on several processes and in shards."""

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from gmf_platform.models.norm import BatchNorm, average_statistics, set_norm_mode
from gmf_platform.optim import AveragedWeights

DECAY = 0.7


def make_net(norm=True):
    torch.manual_seed(0)
    layers = [nn.Linear(5, 7), BatchNorm(7)] if norm else [nn.Linear(5, 7)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(7, 3))


def train(net, steps, *, after_step, first=0, rank=0, world_size=1):
    """SGD on batches of 8 that are a function of the step, shared among processes."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.9)
    for step in range(first, first + steps):
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))
        net(x[rank::world_size]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        after_step(net)


@pytest.mark.parametrize("warmup", [False, True])
def test_equals_timms(warmup):
    ours, theirs = AveragedWeights(DECAY, warmup=warmup), []

    def update(net):
        if not theirs:
            theirs.append(ModelEmaV3(net, decay=DECAY, use_warmup=warmup))
        ours.update(net)
        theirs[0].update(net, step=ours.updates)

    train(make_net(), 12, after_step=update)
    expected = theirs[0].module.state_dict()
    found = ours.state_dict()["state_dict"]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_by_the_formula():
    ours, weights = AveragedWeights(DECAY), []

    def update(net):
        ours.update(net)
        weights.append(net[0].weight.detach().clone())

    train(make_net(), 4, after_step=update)
    w0, w1, w2, w3 = weights
    expected = DECAY**3 * w0 + 0.3 * (DECAY**2 * w1 + DECAY * w2 + w3)
    torch.testing.assert_close(ours.state_dict()["state_dict"]["0.weight"], expected)


def test_put_into_a_module_and_taken_out():
    ours, net = AveragedWeights(DECAY), make_net()
    train(net, 3, after_step=ours.update)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    averages = {name: t.clone() for name, t in ours.state_dict()["state_dict"].items()}
    with torch.inference_mode():  # as in validation
        ours.put_into(net)
        inside = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        ours.take_out(net)
    assert all(torch.equal(inside[name], averages[name]) for name in averages)
    assert not torch.equal(inside["0.weight"], before["0.weight"])
    after = net.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    train(net, 1, after_step=ours.update, first=3)  # which still can be trained


def test_goes_on_exactly():
    whole, net = AveragedWeights(DECAY, warmup=True), make_net()
    train(net, 3, after_step=whole.update)
    resumed = AveragedWeights(DECAY, warmup=True)
    resumed.load_state_dict(whole.state_dict(), make_net())

    def update(net):
        whole.update(net)
        resumed.update(net)

    train(net, 3, after_step=update, first=3)
    one, other = whole.state_dict(), resumed.state_dict()
    assert one["updates"] == other["updates"] == 6
    assert all(torch.equal(t, other["state_dict"][n]) for n, t in one["state_dict"].items())


def test_average_of_bfloat16_weights_is_kept_in_float32():
    ours, net = AveragedWeights(0.999), nn.Linear(4, 4).bfloat16()
    ours.update(net)
    first = ours.state_dict()["state_dict"]["weight"].clone()
    with torch.no_grad():
        net.weight.mul_(1.02)
    for _ in range(3):
        ours.update(net)
    average = ours.state_dict()["state_dict"]["weight"]
    assert average.dtype == torch.float32
    expected = net.weight.float() + 0.999**3 * (first - net.weight.float())
    torch.testing.assert_close(average, expected)
    ours.put_into(net)
    assert torch.equal(net.weight, average.bfloat16())


def trained_alone(steps):
    ours, net = AveragedWeights(DECAY), make_net(norm=False)
    train(net, steps, after_step=ours.update)
    return ours.state_dict()["state_dict"]


def test_two_processes_average_as_one(run_processes):
    def on_rank(rank):
        net = DistributedDataParallel(make_net(norm=False))
        ours = AveragedWeights(DECAY)
        train(
            net,
            5,
            after_step=lambda wrapped: ours.update(wrapped.module),
            rank=rank,
            world_size=2,
        )
        return ours.state_dict()["state_dict"]

    expected = trained_alone(5)
    first, second = run_processes(on_rank, 2)
    for name, tensor in expected.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], tensor)


def test_processes_share_what_norms_of_their_own_images_saw(run_processes):
    """Norms in mode ``train``: all other tensors agree by themselves."""

    def main(rank):
        net = make_net()
        set_norm_mode(net, "train")
        average = AveragedWeights(DECAY)
        train(
            DistributedDataParallel(net, broadcast_buffers=False),
            3,
            after_step=lambda _: average.update(net),
            rank=rank,
            world_size=2,
        )
        before = {name: t.clone() for name, t in average.state_dict()["state_dict"].items()}
        average.share_statistics(net)
        weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        average_statistics(net)
        return before, average.state_dict()["state_dict"], weights, net.state_dict()

    (first, shared, weights, together), (second, too, other_weights, _) = run_processes(main, 2)
    for name in shared:
        assert torch.equal(shared[name], too[name])
        own = not torch.equal(first[name], second[name])
        assert own == (name in {"1.running_mean", "1.running_var"})
        if shared[name].is_floating_point():
            torch.testing.assert_close(shared[name], (first[name] + second[name]) / 2)
            mean = (weights[name] + other_weights[name]) / 2
            torch.testing.assert_close(together[name], mean)


def test_shards_average_as_the_whole(run_processes):
    """Under FSDP2; also when put in and taken out between steps, saved and taken up again."""
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(99))

    def on_rank(rank):
        net = make_net(norm=False)
        for layer in (net[0], net[2]):
            fully_shard(layer)
        fully_shard(net)
        ours = AveragedWeights(DECAY)
        share = {"rank": rank, "world_size": 2}
        train(net, 3, after_step=ours.update, **share)
        before = [p.full_tensor() for p in net.parameters()]
        net(x)  # leaves the parameters of the root unsharded
        with torch.no_grad():
            ours.put_into(net)
            outputs = net(x)
            ours.take_out(net)
        after = [p.full_tensor() for p in net.parameters()]
        same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

        resumed = AveragedWeights(DECAY)
        resumed.load_state_dict(ours.state_dict(), net)

        def update(net):
            ours.update(net)
            resumed.update(net)

        sharded = all(isinstance(p, DTensor) for p in net.parameters())
        train(net, 1, after_step=update, first=3, **share)
        return {
            "outputs": outputs,
            "same": same,
            "sharded": sharded and isinstance(net, FSDPModule),
            "average": ours.state_dict()["state_dict"],
            "resumed": resumed.state_dict()["state_dict"],
        }

    ranks = run_processes(on_rank, 2)
    averaged = make_net(norm=False)
    averaged.load_state_dict(trained_alone(3))
    ours, net = AveragedWeights(DECAY), make_net(norm=False)
    train(net, 3, after_step=ours.update)
    train(net, 1, after_step=ours.update, first=3)
    expected = ours.state_dict()["state_dict"]
    for found in ranks:
        assert found["same"]
        assert found["sharded"]
        torch.testing.assert_close(found["outputs"], averaged(x).detach())
        for name, tensor in expected.items():
            assert tensor.shape == found["average"][name].shape
            torch.testing.assert_close(found["average"][name], tensor)
            assert torch.equal(found["average"][name], found["resumed"][name])
