import torch
import torch.distributed as dist

from gmf_platform.benchmark.collectives import Collectives
from gmf_platform.models.norm import BatchNorm


def test_counts_of_a_synchronised_norm(run_processes):
    """Forward: count, mean and squares of each channel; backward: two sums of each."""

    def step(rank):
        before = dist.all_reduce
        counts = Collectives()
        norm = BatchNorm(6)
        with counts.counting():
            norm(torch.randn(2, 6, 4, 4)).square().sum().backward()
        assert dist.all_reduce is before
        return counts

    for counts in run_processes(step, 2):
        assert counts.calls == {"all_gather_into_tensor": 1, "all_reduce": 1}
        assert counts.nbytes == {"all_gather_into_tensor": 4 * 13, "all_reduce": 4 * 12}
