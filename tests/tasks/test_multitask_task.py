"""Joint training by the task against plain PyTorch: gradients, memory, statistics, scores."""

from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from gmf_platform.errors import UserError
from gmf_platform.models.backbones import GroupMixFormer
from gmf_platform.models.heads import ClassificationHead, SemanticFPN
from gmf_platform.models.norm import BatchNorm, statistics_estimated
from gmf_platform.models.weights import load_part, load_weights
from gmf_platform.optim.balancing import FixedWeights, PCGrad
from gmf_platform.tasks import ClassificationTask, MultiTask, SegmentationTask

SMALL = {"embedding_dims": (10, 10, 20, 20), "depths": (1, 1, 1, 1), "mlp_ratios": (2,) * 4}
CLASSES = ["cls/cat", "cls/dog", "seg/sky", "seg/sea", "seg/sand", "more/yes", "more/no"]
TASKS = {
    "cls": partial(ClassificationTask, head=ClassificationHead),
    "seg": partial(SegmentationTask, decode_head=partial(SemanticFPN, channels=8, dropout=0.0)),
    "more": partial(ClassificationTask, head=ClassificationHead),
}


def made(tasks=TASKS, classes=CLASSES, **settings):
    torch.manual_seed(0)
    return MultiTask(
        classes, backbone=GroupMixFormer(drop_path=0.0, **SMALL), tasks=tasks, **settings
    )


def batch_of(*, seg_parts=1):
    generator = torch.Generator().manual_seed(1)

    def images(count, side):
        shape = (count, 3, side, side)
        return {
            "images": torch.randint(256, shape, generator=generator, dtype=torch.uint8),
            "sizes": torch.tensor([[side, side]] * count),
            "ids": [str(i) for i in range(count)],
        }

    masks = torch.randint(3, (2, 96, 96), generator=generator)
    return {
        "tasks": {
            "cls": [images(3, 64) | {"labels": torch.tensor([0, 1, 0])}],
            "seg": [images(2, 96) | {"masks": masks} for _ in range(seg_parts)],
            "more": [images(4, 64) | {"labels": torch.tensor([1, 1, 0, 0])}],
        }
    }


@contextmanager
def attached(task, *, logged):
    """A task as within a run on one device."""
    trainer = MagicMock()
    trainer.strategy = SimpleNamespace(model=task)
    trainer.precision_plugin = SimpleNamespace()
    trainer.world_size, trainer.global_step = 1, 3
    trainer.train_dataloader = None
    task._trainer = trainer
    task.is_logged = lambda: logged
    task.log_dict = lambda values, **_: trainer.logged.update(values)
    trainer.logged = {}
    yield trainer


def gradients(task):
    return {name: p.grad for name, p in task.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("logged", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
def test_the_gradients_are_those_of_the_weighed_sum(logged, parts):
    balancing = partial(FixedWeights, weights={"seg": 0.5})
    task, plain = made(balancing=balancing), made(balancing=balancing)
    batch = batch_of(seg_parts=parts)
    with attached(task, logged=logged):
        total = task.training_step(batch, 0)
    expected = torch.zeros(())
    for name, micro in batch["tasks"].items():
        for one in micro:
            loss = sum(plain.task(name).losses(one).values())
            expected = expected + (0.5 if name == "seg" else 1.0) * loss / len(micro)
    expected.backward()
    torch.testing.assert_close(total, expected.detach())
    got, wanted = gradients(task), gradients(plain)
    assert got.keys() == wanted.keys() == dict(task.model.named_parameters()).keys()
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=1e-3, atol=1e-6, msg=name)


def test_gradient_surgery_on_the_backbone_alone():
    task, plain = made(balancing=PCGrad), made()
    batch = batch_of()
    with attached(task, logged=False) as trainer:
        task.training_step(batch, 0)
    shared = list(plain.model.backbone.parameters())
    vectors, heads = [], {}
    for name, (one,) in batch["tasks"].items():
        plain.zero_grad()
        sum(plain.task(name).losses(one).values()).backward()
        vectors.append(torch.cat([p.grad.flatten() for p in shared]).double())
        heads |= {n: g.clone() for n, g in gradients(plain).items() if not n.startswith("backbone")}
    stacked = torch.stack(vectors)
    factors = PCGrad(list(TASKS)).coefficients(stacked @ stacked.T, seed=(0, 3))
    expected = torch.tensor(factors, dtype=torch.float64) @ stacked
    got = torch.cat([p.grad.flatten() for p in task.model.backbone.parameters()]).double()
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-6)
    assert any(factor != 1 for factor in factors)
    for name, value in heads.items():
        torch.testing.assert_close(gradients(task)[name], value)
    norms = [trainer.logged[f"train/{name}/gradient_norm"] for name in TASKS]
    assert norms == pytest.approx([float(v.norm()) for v in vectors], rel=1e-3)
    cosine = torch.cosine_similarity(vectors[0], vectors[2], dim=0)
    assert trainer.logged["train/cosine/cls_more"] == pytest.approx(float(cosine), abs=1e-3)


def test_a_scaled_loss_scales_gradients_and_not_what_is_logged():
    task, plain, batch = made(), made(), batch_of()
    with attached(task, logged=True) as trainer:
        task.training_step(batch, 0)
        expected = {name: float(value) for name, value in trainer.logged.items()}
    with attached(plain, logged=True) as trainer:
        trainer.precision_plugin.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        plain.training_step(batch, 0)
        got = {name: float(value) for name, value in trainer.logged.items()}
    assert got == pytest.approx(expected, rel=1e-3)
    for name, gradient in gradients(task).items():
        scaled = gradients(plain)[name]
        torch.testing.assert_close(scaled, 1024 * gradient, rtol=1e-3, atol=1e-3, msg=name)


class Held:
    """Bytes that autograd holds for backward passes, and the most at a time."""

    def __init__(self):
        self.now = self.most = 0

    def pack(self, tensor):
        size = tensor.nbytes
        self.now += size
        self.most = max(self.most, self.now)
        return _Packed(self, tensor, size)


class _Packed:
    def __init__(self, held, tensor, size):
        self.held, self.tensor, self.size = held, tensor, size

    def __del__(self):
        self.held.now -= self.size


def peak(step):
    held = Held()
    with torch.autograd.graph.saved_tensors_hooks(held.pack, lambda packed: packed.tensor):
        step()
    return held.most


def test_peak_memory_is_that_of_the_largest_task():
    task, batch = made(), batch_of()
    alone = {
        name: peak(lambda n=name, o=one: sum(task.task(n).losses(o).values()).backward())
        for name, (one,) in batch["tasks"].items()
    }
    with attached(task, logged=False):
        together = peak(lambda: task.training_step(batch, 0))
    largest = max(alone.values())
    assert largest <= together < 1.05 * largest
    assert sum(alone.values()) > 1.15 * largest


def test_a_task_without_a_turn_has_no_gradient():
    task, batch = made(), batch_of()
    del batch["tasks"]["seg"], batch["tasks"]["more"]
    with attached(task, logged=True):
        task.training_step(batch_of(), 0)  # gradients of all, which must go
        task.training_step(batch, 0)
    parts = {name.partition(".")[0] for name in gradients(task)}
    assert parts == {"backbone", "cls"}


def test_one_backbone_and_names_of_parts():
    task = made()
    names = task.state_dict()
    assert {name.split(".")[1] for name in names} == {"backbone", "cls", "seg", "more"}
    assert not any("backbone" in name.split(".")[2:] for name in names)
    assert task.headline == ["score", "cls/top1", "seg/miou", "more/top1"]
    assert task.task("seg").class_names == ["sky", "sea", "sand"]


def test_the_backbone_runs_once_for_all_predictions():
    task = made().eval()
    batch = batch_of()["tasks"]["cls"][0] | {"original_sizes": torch.tensor([[64, 64]] * 3)}
    calls = []
    task.model.backbone.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        together = task.predict_step(batch, 0)
        assert len(calls) == 1
        alone = {name: one.predict_step(batch, 0) for name, one in task.parts()}
    for mine, other in zip(together["seg"], alone["seg"], strict=True):
        assert torch.equal(mine, other)
    for mine, other in zip(together["more"], alone["more"], strict=True):
        torch.testing.assert_close(mine.probabilities, other.probabilities)


def test_with_statistics_per_task_the_backbone_runs_once_for_each():
    task = made(norm_statistics="per_task").eval()
    batch = batch_of()["tasks"]["cls"][0] | {"original_sizes": torch.tensor([[64, 64]] * 3)}
    calls = []
    task.model.backbone.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        task.predict_step(batch, 0)
    assert len(calls) == len(TASKS)


def norms(task):
    return [m for m in task.model.backbone.modules() if isinstance(m, BatchNorm)]


def test_statistics_per_task_do_not_mix():
    task = made(norm_statistics="per_task")
    batch = batch_of()
    before = {name: buffer.clone() for name, buffer in task.model.backbone.named_buffers()}
    task.model("cls", batch["tasks"]["cls"][0]["images"])
    changed = {n for n, b in task.model.backbone.named_buffers() if not torch.equal(before[n], b)}
    assert changed
    assert all(name.endswith("_cls") for name in changed)
    assert {f"{n.rpartition('_')[0]}_cls" for n in before if n.endswith("_seg")} == changed
    task.eval()
    one, other = (task.model(name, batch["tasks"]["cls"][0]["images"]) for name in ("cls", "more"))
    assert not torch.equal(one, other)


def test_statistics_per_task_begin_as_those_of_a_file(tmp_path):
    plain = made(tasks={"cls": TASKS["cls"]}, classes=CLASSES[:2])
    for norm in norms(plain):
        norm.running_mean.uniform_()
    torch.save(plain.model.backbone.state_dict(), tmp_path / "backbone.pth")
    task = made(norm_statistics="per_task")
    load_weights(task.model, tmp_path / "backbone.pth")
    for norm, source in zip(norms(task), norms(plain), strict=True):
        assert torch.equal(norm.running_mean_seg, source.running_mean)


def test_estimated_statistics_are_those_of_all_values():
    """Of batches of one size: mean and variance of all their values; then evaluation uses them."""
    norm = BatchNorm(3)
    norm.running_mean.fill_(7)
    norm.eval()
    batches = [torch.randn(4, 3, 5, 5) * (i + 1) + i for i in range(3)]
    with statistics_estimated(norm):
        for batch in batches:
            own = (batch - batch.mean((0, 2, 3), keepdim=True)) / batch.std((0, 2, 3), keepdim=True)
            torch.testing.assert_close(norm(batch), own, rtol=0.01, atol=0.01)
    values = torch.cat(batches).transpose(0, 1).flatten(1)
    torch.testing.assert_close(norm.running_mean, values.mean(1))
    torch.testing.assert_close(norm.running_var, values.var(1), rtol=0.01, atol=0.0)
    assert norm.sums is None


def test_frozen_norms_keep_their_statistics():
    norm = BatchNorm(3, mode="frozen")
    with statistics_estimated(norm):
        norm(torch.randn(4, 3))
    assert torch.equal(norm.running_mean, torch.zeros(3))


def test_parts_from_several_files(tmp_path):
    """The backbone from one single-task checkpoint, a head from another."""
    sources = {
        name: factory(
            [c.partition("/")[2] for c in CLASSES if c.startswith(f"{name}/")],
            backbone=GroupMixFormer(**SMALL),
        )
        for name, factory in TASKS.items()
    }
    for name, source in sources.items():
        torch.save({"state_dict": source.state_dict()}, tmp_path / f"{name}.ckpt")
    task = made()
    load_part(task.model, "backbone", tmp_path / "cls.ckpt")
    load_part(task.model, "seg", tmp_path / "seg.ckpt")
    own, cls, seg = (x.model.state_dict() for x in (task, sources["cls"], sources["seg"]))
    for name, tensor in own.items():
        if name.startswith("backbone."):
            assert torch.equal(tensor, cls[name])
        if name.startswith("seg."):
            assert torch.equal(tensor, seg[name.removeprefix("seg.")])
    with pytest.raises(UserError, match=r"init_from.seg: .* has nothing for it"):
        load_part(task.model, "seg", tmp_path / "cls.ckpt")
    with pytest.raises(
        UserError, match=r"init_from.sky: the model has no such part: backbone, cls"
    ):
        load_part(task.model, "sky", tmp_path / "cls.ckpt")


def test_frozen_heads():
    task = made(frozen_tasks=["seg"])
    with attached(task, logged=False):
        task.train().training_step(batch_of(), 0)
    assert {name.partition(".")[0] for name in gradients(task)} == {"backbone", "cls", "more"}
    assert not task.model.seg.training


@pytest.mark.parametrize("name", ["train", "backbone", "a-b", "balancing"])
def test_names_that_no_task_can_have(name):
    with pytest.raises(UserError, match=f"model.tasks.{name}: a task cannot be called so"):
        made(tasks={name: TASKS["cls"]}, classes=[f"{name}/x", f"{name}/y"])
