import pytest

from gmf_platform.benchmark.bare import Overhead, Pair


def pair(trainer, bare, is_logged=False):
    return Pair(trainer, bare, trainer / 2, bare / 4, is_logged)


def test_overhead_is_of_the_medians():
    pairs = [pair(1.1, 1.0), pair(1.3, 1.0), pair(9.0, 1.0), pair(3.0, 1.0, is_logged=True)]
    over = Overhead.of(pairs, log_every=10, processor=False)
    assert over.bare == 1.0
    assert over.added == pytest.approx(0.3 + (2.0 - 0.3) / 10)
    assert over.share == over.added


def test_overhead_by_the_processors_time():
    pairs = [pair(1.2, 1.0), pair(1.2, 1.0, is_logged=True)]
    over = Overhead.of(pairs, log_every=50, processor=True)
    assert over.bare == 0.25
    assert over.added == pytest.approx(0.35)


@pytest.mark.parametrize("is_logged", [True, False])
def test_steps_of_one_kind(is_logged):
    over = Overhead.of([pair(1.5, 1.0, is_logged)] * 2, log_every=50, processor=False)
    assert (over.bare, over.added) == (1.0, 0.5)
