import time

import pytest
import torch

from gmf_platform.benchmark.timing import Ratio, interleaved, machine

CPU = torch.device("cpu")


def test_tasks_take_turns_and_warm_up():
    order = []
    tasks = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = interleaved(tasks, runs=3, device=CPU)
    assert "".join(order) == "cba" + "abc" + "cba" + "abc"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_clocks():
    tasks = {"sleep": lambda: time.sleep(0.05)}
    wall = interleaved(tasks, runs=1, device=CPU, warmup=0)
    processor = interleaved(tasks, runs=1, device=CPU, warmup=0, clock="processor")
    assert wall["sleep"][0] >= 0.05 > processor["sleep"][0]


def test_ratio_is_of_the_smallest_times_and_its_range_of_rounds():
    ratio = Ratio.of([4.0, 6.0, 9.0], [2.0, 1.0, 3.0])
    assert (ratio.best, ratio.low, ratio.high) == (4.0, 2.0, 6.0)
    assert str(ratio) == "4.00 (2.00 to 6.00)"
    with pytest.raises(ValueError, match="argument"):
        Ratio.of([1.0], [1.0, 2.0])


def test_machine_names_versions():
    about = machine(CPU)
    assert about["torch"] == torch.__version__.partition("+")[0]
    assert about["threads"] == torch.get_num_threads()
