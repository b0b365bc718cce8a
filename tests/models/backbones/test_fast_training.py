"""Training by the fast operations against training by plain PyTorch."""

from contextlib import contextmanager, nullcontext

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
            embedding_dims=(10, 20, 20, 30), depths=(1,) * 4, mlp_ratios=(2,) * 4, drop_path=0.2
        )
        self.head = ClassificationHead(self.backbone.channels, CLASSES)

    def forward(self, images):
        return self.head(self.backbone(images))


@contextmanager
def plain():
    """Have the operations that torch.compile is given. Not for optimisers, which ask as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        yield


def losses_of(steps, forward=nullcontext, *, seed=0, dtype=torch.float32, autocast=False):
    """Losses of a training run on noisy images of four patterns, by one way forward or the other."""
    torch.manual_seed(seed)
    net = Classifier().to(dtype)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    patterns = torch.randn(CLASSES, 3, 72, 64, dtype=dtype)
    losses = []
    for step in range(steps):
        torch.manual_seed(1000 * seed + step)
        labels = torch.randint(CLASSES, (4,))
        images = patterns[labels] + 2 * torch.randn(4, 3, 72, 64).to(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast), forward():
            logits = net(images)
        loss = F.cross_entropy(logits.to(dtype), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def test_the_plain_run_is_another():
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
    with plain():
        assert not nodes() & (ours | {"NormHardswishBackward"})


def test_twenty_steps():
    fast, reference = losses_of(20), losses_of(20, plain)
    assert (fast - reference).abs().max() < 1e-4
    assert fast.unique().numel() == 20


@pytest.mark.slow
def test_two_hundred_steps_in_float64():
    fast = losses_of(200, dtype=torch.float64)
    reference = losses_of(200, plain, dtype=torch.float64)
    assert (fast - reference).abs().max() < 1e-6
    assert fast[-20:].mean() < 0.5 * fast[:20].mean()


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [False, True])
def test_final_loss_over_seeds(autocast):
    """The mean over seeds: single float32 runs leave each other as runs of two seeds do."""
    steps, last, seeds = 120, 30, range(3)
    fast, reference = (
        torch.stack([losses_of(steps, way, seed=s, autocast=autocast) for s in seeds])
        for way in (nullcontext, plain)
    )
    assert fast[:, -last:].mean() < 0.8 * fast[:, :last].mean()
    difference = fast[:, -last:].mean() - reference[:, -last:].mean()
    assert difference.abs() < 0.05
