import os
import warnings

import pytest
import torch
from torch.distributed import checkpoint

from gmf_platform.errors import UserError
from gmf_platform.models.weight_folders import read_folder


@pytest.fixture
def folder(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process
        checkpoint.save({"state_dict": {"a": torch.arange(1000.0)}}, checkpoint_id=tmp_path)
    return tmp_path


def test_whole(folder):
    assert torch.equal(read_folder(folder)["state_dict"]["a"], torch.arange(1000.0))


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_shard_is_cut_off(folder, share):
    """Torch's error for it is none of Exception's kind."""
    (shard,) = folder.glob("*.distcp")
    os.truncate(shard, int(share * shard.stat().st_size))
    with pytest.raises(UserError, match=r"a shard is missing or damaged \((?!CheckpointEx)\w+"):
        read_folder(folder)
