import math

import pytest
import torch

from gmf_platform.distributed import gradients
from gmf_platform.distributed.gradients import are_finite, average_over_processes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_element_is_enough(dtype, value):
    """At any place of any tensor, whatever way the elements are gone through."""
    sizes = [1, 7, 64, 10_000]
    assert are_finite([torch.full((size,), -3.0, dtype=dtype) for size in sizes])
    for number, size in enumerate(sizes):
        for place in {0, size // 2, size - 1}:
            tensors = [torch.full((s,), -3.0, dtype=dtype) for s in sizes]
            tensors[number][place] = value
            assert not are_finite(tensors), (size, place)


def test_large_is_finite():
    """The squares of these are not."""
    assert are_finite([torch.full((5,), 3e38), torch.full((5,), 6e4, dtype=torch.float16)])


def test_nothing_is_finite():
    assert are_finite([])
    assert are_finite([torch.zeros(0), torch.ones(2)])


def test_the_average_over_processes(run_processes, monkeypatch):
    """In several buckets, of several dtypes and memory formats, in place."""
    monkeypatch.setattr(gradients, "_BUCKET", 100)

    def work(rank):
        tensors = [
            torch.full((3, 5), rank + 1.0),
            torch.arange(24.0).view(1, 2, 3, 4).to(memory_format=torch.channels_last) * rank,
            torch.full((7,), 2.0 * rank, dtype=torch.float64),
            torch.full((200,), float(rank)),
        ]
        places = [tensor.data_ptr() for tensor in tensors]
        average_over_processes(tensors)
        assert places == [tensor.data_ptr() for tensor in tensors]
        return tensors

    for got in run_processes(work, 3):
        assert torch.equal(got[0], torch.full((3, 5), 2.0))
        assert torch.equal(got[1], torch.arange(24.0).view(1, 2, 3, 4))
        assert torch.equal(got[2], torch.full((7,), 2.0, dtype=torch.float64))
        assert torch.equal(got[3], torch.ones(200))
