"""Running statistics of norms that each process keeps for itself."""

import torch
import torch.distributed as dist
from torch import nn

from gmf_platform.models.norm import BatchNorm

__all__ = ["average_statistics"]


@torch.no_grad()
def average_statistics(model: nn.Module) -> None:
    """Give all processes the mean of their norms' running statistics.

    Norms in mode ``train`` see a process's own images; without this a checkpoint would hold the
    statistics of whichever process wrote it. Those in mode ``sync`` agree already. One collective.

    Args:
        model: of any kind; with one process nothing is done.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    norms = [m for m in model.modules() if isinstance(m, BatchNorm) and m.mode == "train"]
    if not norms:
        return
    statistics = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
    flat = torch.cat([buffer.flatten() for buffer in statistics])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    pieces = flat.split([buffer.numel() for buffer in statistics])
    for buffer, piece in zip(statistics, pieces, strict=True):
        buffer.copy_(piece.view_as(buffer))
