"""A model's tensors in one piece, whatever the strategy."""

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor

from gmf_platform.distributed.strategies import ZeRO

__all__ = ["whole_state_dict"]


@torch.no_grad()
def whole_state_dict(trainer: Trainer) -> dict[str, Tensor]:
    """The task's state dict in this process's memory; all processes must call it.

    Copies, so that they stay as they are when training goes on.
    """
    module = trainer.lightning_module
    match trainer.strategy:
        case ZeRO():
            from deepspeed import zero

            with zero.GatheredParameters(list(module.parameters())):
                return {name: _copy(tensor) for name, tensor in module.state_dict().items()}
        case _:
            return {name: _copy(tensor) for name, tensor in module.state_dict().items()}


def _copy(tensor: Tensor) -> Tensor:
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().to("cpu", copy=True)
