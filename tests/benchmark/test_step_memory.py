import torch
from torch import nn

from gmf_platform.benchmark.memory import LiveBytes, step_memory

CPU = torch.device("cpu")


def test_live_bytes_of_a_chain():
    with LiveBytes() as live:
        a = torch.zeros(1000)  # 4000 bytes
        b = a + 1
        assert (live.now, live.peak) == (8000, 8000)
        view = b.view(10, 100)
        view.mul_(2)
        assert live.now == 8000
        del a
        assert (live.now, live.peak) == (4000, 8000)
        del b
        assert live.now == 4000  # the view holds it
        del view
    assert live.now == 0


def test_what_was_there_before_does_not_count():
    weight = torch.zeros(1000)
    with LiveBytes() as live:
        row = weight.view(10, 100).t()
        assert (row.shape, live.now) == ((100, 10), 0)


def test_step_of_two_layers_by_hand():
    """Squares keep their input; matrix products keep theirs, which is the same tensor."""
    first, second = nn.Linear(100, 50, bias=False), nn.Linear(50, 10, bias=False)
    x = torch.randn(8, 100)

    memory = step_memory(lambda: second(first(x).square()).sum(), device=CPU)
    assert memory is not None
    hidden, loss = 4 * 8 * 50, 4
    assert memory.held == 2 * hidden + loss  # before and behind the square
    gradients = 4 * (100 * 50 + 50 * 10)
    assert gradients < memory.peak <= gradients + memory.held + 2 * hidden
    assert first.weight.grad is not None


def test_nobody_sees_into_compiled_code():
    assert step_memory(lambda: torch.zeros(()), device=CPU, compiled=True) is None
