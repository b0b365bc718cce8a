"""One cluster for all tests of a file."""

import shutil
import tempfile
from pathlib import Path

import pytest
from mini_slurm import MiniSlurm, why_not


@pytest.fixture(scope="module")
def slurm():
    """Four nodes with 8 GPUs each, as they say."""
    if reason := why_not():
        pytest.skip(reason)
    root = Path(tempfile.mkdtemp(prefix="slurm-"))
    with MiniSlurm(root, nodes=4, cpus=64, gpus=8) as cluster:
        yield cluster
    shutil.rmtree(root, ignore_errors=True)
