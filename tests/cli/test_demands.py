import pytest
import torch

from gmf_platform.cli.demands import _moments, seconds_left
from gmf_platform.cli.run_directory import RunDirectory


@pytest.mark.parametrize(
    ("make", "number"),
    [
        (torch.optim.AdamW, 2),
        (lambda groups: torch.optim.AdamW(groups, amsgrad=True), 3),
        (lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9), 1),
        (lambda groups: torch.optim.SGD(groups, lr=0.1), 0),
    ],
)
def test_moments(make, number):
    assert _moments(make) == number


LINE = "2026-01-01 00:00:00 step 50/1000  loss 1.0  lr 1.00e-04  memory 0.7 GiB  left {}\n"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", None),
        ("validation at step 5  val/miou 0.1\n", None),
        (LINE.format("0:01:02"), 62),
        (LINE.format("2 days, 3:00:01") + LINE.format("1 day, 2:00:03"), 93603),
    ],
)
def test_time_left_is_what_the_run_said_last(text, seconds, tmp_path):
    folder = RunDirectory(tmp_path)
    folder.log.write_text(text)
    assert seconds_left(folder) == seconds


def test_no_run_yet(tmp_path):
    assert seconds_left(RunDirectory(tmp_path / "a")) is None
