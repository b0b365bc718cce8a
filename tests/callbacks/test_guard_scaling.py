"""float16's loss scaling overflows by design; the guard lets it, as long as it helps."""

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader

from gmf_platform.callbacks import Guard


class Steep(LightningModule):
    """A loss of one weight, 0, computed in float16."""

    def __init__(self, loss):
        super().__init__()
        self.weight, self.loss = torch.nn.Parameter(torch.zeros(1)), loss

    def batch_seed(self):
        return 0

    def training_step(self, batch, batch_idx):
        loss = self.loss(self.weight.half()).float().sum()
        self.batch_losses = {"loss": loss.detach()}
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def train(folder, loss, steps):
    module = Steep(loss)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        callbacks=[Guard()],
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader([{"ids": "a"}], collate_fn=lambda samples: {"ids": ["a"]})
    try:
        trainer.fit(module, loader)
    except SystemExit as leaving:
        return leaving.code, trainer.global_step
    return module.weight.item(), scaler.get_scale()


def test_the_scaler_finds_its_scale(tmp_path):
    """float16 ends at 65504: 3 x 2^16 and 3 x 2^15 are too much, and two of four steps are made."""
    assert train(tmp_path, lambda w: 3 * w, steps=4) == (-0.5 * 3 * 2, 2.0**14)


def test_no_scale_helps(tmp_path):
    """The root's gradient at 0 is infinite at any scale; 2^16 halved 24 times is 2^-8."""
    assert train(tmp_path, torch.sqrt, steps=40) == (4, 24)


def test_losses_are_not_the_scalers_affair(tmp_path):
    assert train(tmp_path, lambda w: w / w, steps=40) == (4, 0)
