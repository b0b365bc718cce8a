"""When a run averages, and which weights each of its parts sees."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from gmf_platform.callbacks import MovingAverage
from gmf_platform.errors import UserError
from gmf_platform.models.norm import BatchNorm

DECAY = 0.5


class Recorder(LightningModule):
    """Keeps its weight as each training batch and each validation finds it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1, bias=False)
        self.trained, self.validated = [], []

    def weight(self):
        return self.layer.weight.detach().clone()

    def training_step(self, batch, batch_idx):
        self.trained.append(self.weight())
        return self.layer(batch).square().mean()

    def validation_step(self, batch, batch_idx):
        self.validated.append(self.weight())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(average, folder, *, batches=8, accumulate=1, ckpt_path=None, epochs=1, sanity=0):
    torch.manual_seed(0)
    module = Recorder()
    data = DataLoader(torch.randn(batches, 2))
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=[average],
        max_epochs=epochs,
        accumulate_grad_batches=accumulate,
        val_check_interval=2 * accumulate,
        num_sanity_val_steps=sanity,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data, DataLoader(torch.randn(1, 2)), ckpt_path=ckpt_path)
    module.trained.append(module.weight())
    return module, trainer


def averages(weights):
    """The average after each step, from the weights that the steps made."""
    found = [weights[0]]
    for weight in weights[1:]:
        found.append(DECAY * found[-1] + (1 - DECAY) * weight)
    return found


@pytest.mark.parametrize("accumulate", [1, 2])
def test_validation_sees_the_average_of_the_steps(tmp_path, accumulate):
    module, _ = fit(MovingAverage(DECAY), tmp_path, batches=8 * accumulate, accumulate=accumulate)
    plain, _ = fit(MovingAverage(), tmp_path, batches=8 * accumulate, accumulate=accumulate)
    assert all(torch.equal(a, b) for a, b in zip(module.trained, plain.trained, strict=True))
    weights = plain.trained[accumulate::accumulate]  # what each optimiser step made
    expected = averages(weights)[1::2]
    torch.testing.assert_close(module.validated, expected)
    torch.testing.assert_close(plain.validated, weights[1::2])
    assert not torch.allclose(module.validated[-1], plain.validated[-1], rtol=1e-3)


def test_the_check_before_training_sees_the_weights(tmp_path):
    module, _ = fit(MovingAverage(DECAY), tmp_path, sanity=1)
    assert torch.equal(module.validated[0], module.trained[0])


def test_checkpoint_holds_weights_and_average(tmp_path):
    module, trainer = fit(MovingAverage(DECAY), tmp_path)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert torch.equal(content["state_dict"]["layer.weight"], module.weight())
    assert content["average"]["updates"] == 8
    torch.testing.assert_close(
        content["average"]["state_dict"]["layer.weight"], averages(module.trained[1:])[-1]
    )


def test_checkpoint_without_an_average(tmp_path):
    _, trainer = fit(MovingAverage(), tmp_path)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert "average" not in torch.load(tmp_path / "a.ckpt", weights_only=True)


def test_average_begins_where_a_checkpoint_has_none(tmp_path):
    _, trainer = fit(MovingAverage(), tmp_path)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    module, _ = fit(MovingAverage(DECAY), tmp_path, ckpt_path=tmp_path / "a.ckpt", epochs=2)
    torch.testing.assert_close(module.validated[-1], averages(module.trained[1:])[-1])


def test_processes_score_and_save_the_same(run_processes):
    """A norm of each process's own images: its average is all processes' mean."""

    def main(rank):
        norm, average, trainer = BatchNorm(2, mode="train"), MovingAverage(DECAY), SimpleNamespace()
        generator, saved = torch.Generator().manual_seed(rank), {}
        for trainer.global_step in range(1, 4):
            norm(torch.randn(8, 2, generator=generator))
            average.on_train_batch_end(trainer, norm)
            if trainer.global_step == 2:
                average.on_validation_start(trainer, norm)
                scored = norm.running_mean.clone()
                average.on_validation_end(trainer, norm)
        average.on_save_checkpoint(trainer, norm, saved)
        return scored, saved["average"]["state_dict"]["running_mean"], norm.running_mean

    (scored, saved, own), (others_scored, others_saved, others) = run_processes(main, 2)
    assert torch.equal(scored, others_scored)
    assert torch.equal(saved, others_saved)
    assert not torch.allclose(own, others, rtol=1e-2)


def test_shards_that_show_nothing_are_refused():
    trainer = SimpleNamespace(strategy=SimpleNamespace(zero_stage_3=True))
    MovingAverage().setup(trainer, None, "fit")
    with pytest.raises(UserError, match=r"average.decay: ZeRO-3 .* strategy/fsdp"):
        MovingAverage(DECAY).setup(trainer, None, "fit")


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, 99.99])
def test_wrong_decays_are_refused(decay):
    with pytest.raises(UserError, match=rf"average.decay: {decay} is not between 0 and 1"):
        MovingAverage(decay)
