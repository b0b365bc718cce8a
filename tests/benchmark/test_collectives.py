import torch
import torch.distributed as dist

from gmf_platform.benchmark.collectives import Collectives
from gmf_platform.models.backbones import GroupMixFormer
from gmf_platform.models.norm import BatchNorm


def test_counts_of_a_synchronised_norm(run_processes):
    """Forward: mean, squares and count of each channel; backward: two sums of each."""

    def step(rank):
        before = dist.all_reduce
        counts = Collectives()
        norm = BatchNorm(6)
        with counts.counting():
            norm(torch.randn(2, 6, 4, 4, requires_grad=True)).square().sum().backward()
        assert dist.all_reduce is before
        return counts

    for counts in run_processes(step, 2):
        assert counts.calls == {"all_gather_into_tensor": 1, "all_reduce": 1}
        assert counts.nbytes == {"all_gather_into_tensor": 4 * 18, "all_reduce": 4 * 12}


def test_norms_of_a_block_share_a_collective(run_processes):
    """Two norms of the stem and four of the embeddings have one each way; so has each block."""

    def step(rank):
        net = GroupMixFormer(
            embedding_dims=(10,) * 4, depths=(1, 2, 1, 1), mlp_ratios=(1,) * 4, drop_path=0.0
        )
        counts = Collectives()
        with counts.counting():
            sum(x.square().sum() for x in net(torch.randn(2, 3, 64, 64))).backward()
        return counts

    for counts in run_processes(step, 2):
        assert counts.calls == {"all_gather_into_tensor": 2 + 4 + 5, "all_reduce": 2 + 4 + 5}
