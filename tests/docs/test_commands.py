"""Every block of commands in README, docs and slurm/README does what it says, on small data."""

import json

import pytest
from blocks import PAGES, blocks
from reader import Reader

SLOW = {"README.md", "docs/tutorials/export.md"}
"""They export a model, which is traced for a minute."""


@pytest.fixture
def reader(tmp_path, call, samples, monkeypatch):
    """A reader in a folder of its own, whose modules are found as ``python -m`` does."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("GMF_DATA", str(tmp_path / "data"))
    return Reader(tmp_path, call, samples)


@pytest.fixture(scope="session")
def samples(sample_ade20k, sample_coco, sample_imagenet, tmp_path_factory):
    """The data sets that pages name under /data/, drawn."""
    camvid = tmp_path_factory.mktemp("camvid") / "camvid"
    camvid.mkdir()
    for part in ("images", "annotations"):
        (camvid / part).symlink_to(sample_ade20k / part)
    names = ["grass", "water", "sand", "disc", "square", "triangle", "star", "ring"]
    (camvid / "classes.txt").write_text("\n".join(names))
    bccd = tmp_path_factory.mktemp("bccd") / "bccd"
    (bccd / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (bccd / split).symlink_to(sample_coco / split)
        name = f"annotations/instances_{split}.json"
        content = json.loads((sample_coco / name).read_text())
        for found in content["annotations"]:
            del found["segmentation"]  # boxes alone
        (bccd / name).write_text(json.dumps(content))
    return {
        "ADEChallengeData2016": sample_ade20k,
        "coco": sample_coco,
        "bccd": bccd,
        "imagenet": sample_imagenet,
        "imagenette": sample_imagenet,
        "camvid": camvid,
        "flowers": sample_imagenet / "train",
    }


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_says_why_not(page):
    for block in blocks(page):
        known = block.language in ("bash", "python", "yaml", "text", "toml", "")
        assert known, f"{block.place}: nothing is known of {block.language}"
        assert block.reason is None or len(block.reason.split()) > 2, f"{block.place}: why not?"


@pytest.mark.parametrize("page", [page for page in PAGES if page not in SLOW])
def test_commands(page, reader):
    reader.follow(page)


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted(SLOW))
def test_commands_that_take_long(page, reader):
    reader.follow(page)
