"""Training by the fast operations against training by plain PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gmf_platform.models.backbones import GroupMixFormer
from gmf_platform.models.heads import ClassificationHead

CLASSES = 4


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = GroupMixFormer(
            embedding_dims=(10, 20, 20, 30), depths=(1, 1, 2, 1), mlp_ratios=(2,) * 4, drop_path=0.2
        )
        self.head = ClassificationHead(self.backbone.channels, CLASSES)

    def forward(self, images):
        return self.head(self.backbone(images))


def losses_of(steps, *, seed=0, dtype=torch.float32, autocast=False):
    """Losses of a training run on noisy images of four patterns."""
    torch.manual_seed(seed)
    net = Classifier().to(dtype)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    patterns = torch.randn(CLASSES, 3, 72, 64, dtype=dtype)
    losses = []
    for step in range(steps):
        torch.manual_seed(1000 * seed + step)
        labels = torch.randint(CLASSES, (4,))
        images = patterns[labels] + 2 * torch.randn(4, 3, 72, 64).to(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = net(images)
        loss = F.cross_entropy(logits.to(dtype), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.fixture
def plainly(monkeypatch):
    """Run something with the operations that torch.compile is given."""

    def run(function, *args, **kwargs):
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            return function(*args, **kwargs)

    return run


def test_the_plain_run_is_another(plainly):
    net, images = GroupMixFormer("mobile"), torch.randn(2, 3, 64, 64)

    def nodes():
        seen, todo = set(), [net(images)[-1].grad_fn]
        while todo:
            node = todo.pop()
            if node is not None and node not in seen:
                seen.add(node)
                todo += [before for before, _ in node.next_functions]
        return {node.name() for node in seen}

    ours = {"_LinearBackward", "_MlpBackward", "_DepthwiseBackward", "_AttendBackward"}
    assert ours | {"NormHardswishBackward"} <= nodes()
    assert not plainly(nodes) & (ours | {"NormHardswishBackward"})


def test_twenty_steps(plainly):
    fast, plain = losses_of(20), plainly(losses_of, 20)
    assert (fast - plain).abs().max() < 1e-4
    assert fast.unique().numel() == 20


@pytest.mark.slow
def test_two_hundred_steps_in_float64(plainly):
    fast = losses_of(200, dtype=torch.float64)
    plain = plainly(losses_of, 200, dtype=torch.float64)
    assert (fast - plain).abs().max() < 1e-6
    assert fast[-20:].mean() < 0.5 * fast[:20].mean()


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [False, True])
def test_final_loss_over_seeds(autocast, plainly):
    steps, last = 120, 30
    seeds = range(3)
    fast = torch.stack([losses_of(steps, seed=s, autocast=autocast) for s in seeds])
    plain = torch.stack([plainly(losses_of, steps, seed=s, autocast=autocast) for s in seeds])
    assert fast[:, -last:].mean() < 0.8 * fast[:, :last].mean()
    difference = fast[:, -last:].mean(1) - plain[:, -last:].mean(1)
    assert difference.abs().max() < 0.05
