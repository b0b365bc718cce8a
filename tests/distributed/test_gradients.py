import math

import pytest
import torch

from gmf_platform.distributed.gradients import are_finite


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
