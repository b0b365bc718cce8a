"""shard-data: what it writes, says and refuses; and that the datamodule reads it as the folders."""

import tarfile

import pytest
import torch

from datamodules.imagenet import ImageNet
from datamodules.sample_data import write_sample
from datamodules.shards import find_shards


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A drawn set in ImageNet's layout; not to be written to."""
    root = tmp_path_factory.mktemp("sample") / "imagenet"
    write_sample("imagenet", root, train=30, val=10, size=40, seed=0)
    return root


@pytest.fixture
def shard(gmf, folders):
    return lambda *words: gmf("shard-data", "imagenet", folders, "shards", *words)


def test_both_splits(shard, tmp_path):
    result = shard("--samples-per-shard", 10, "--workers", 2)
    assert (result.code, [line.split(",")[0] for line in result.out.splitlines()]) == (
        0,
        ["train 30 images in 3 shards", "val   10 images in 1 shards"],
    )
    assert "3 of them new, at " in result.out
    assert "train: 30/30 written\n" in result.err  # no terminal, so lines
    names = sorted(path.name for path in (tmp_path / "shards").rglob("*.*"))
    assert names == [
        *(f"imagenet-train-{i:06d}.tar" for i in range(3)),
        "imagenet-val-000000.tar",
        "index-train.npz",
        "index-val.npz",
    ]


def test_again_and_overwrite(shard, tmp_path):
    words = ("--split", "val")
    assert shard(*words).code == 0
    again = shard(*words)
    assert (again.code, again.out.endswith(", 0 of them new\n")) == (0, True)
    refused = shard(*words, "--seed", 1)
    assert refused.code == 2
    assert "seed 0 in place of 1" in refused.err
    assert shard(*words, "--seed", 1, "--overwrite").code == 0
    assert not (tmp_path / "shards" / "train").exists()


def test_size_of_a_shard(shard, tmp_path):
    assert shard("--shard-size", "20KB", "--split", "train").code == 0
    sizes = [path.stat().st_size for path in find_shards(tmp_path / "shards", "train")]
    assert len(sizes) > 3
    assert all(10_000 < size < 40_000 for size in sizes)  # tar files are filled up to 10 KB


def test_read_as_the_folders_are(shard, folders, tmp_path):
    shard("--samples-per-shard", 4)
    sets = [
        ImageNet(str(root), image_size=32, global_batch_size=10, eval_batch_size=5, num_workers=0)
        for root in (folders, tmp_path / "shards")
    ]
    assert sets[0].class_names == sets[1].class_names
    seen = []
    for data in sets:
        data.setup("fit")
        batches = list(data.eval_loader("validation"))
        images = torch.cat([batch["images"] for batch in batches])
        labels = torch.cat([batch["labels"] for batch in batches])
        ids = [name.rsplit("/", 1)[1].split(".")[0] for batch in batches for name in batch["ids"]]
        order = sorted(range(len(ids)), key=ids.__getitem__)
        seen.append((sorted(ids), images[order], labels[order]))
    assert seen[0][0] == seen[1][0]
    assert torch.equal(seen[0][1], seen[1][1])
    assert torch.equal(seen[0][2], seen[1][2])
    epoch = [name for batch in sets[1].train_loader(steps=3) for name in batch["ids"]]
    assert len(set(epoch)) == len(epoch) == 30


def test_flat_validation_folder(gmf, folders, tmp_path):
    flat = tmp_path / "flat"
    (flat / "val").mkdir(parents=True)
    (flat / "train").symlink_to(folders / "train")
    pictures = sorted((folders / "val").rglob("*.JPEG"), key=lambda path: path.name)
    for path in pictures:
        (flat / "val" / path.name).write_bytes(path.read_bytes())
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"{path.name} {path.parent.name}\n" for path in pictures))
    result = gmf(
        *("shard-data", "imagenet", flat, "shards", "--split", "val", "--val-labels", labels)
    )
    assert result.code == 0, result.err
    classes = sorted(path.name for path in (folders / "train").iterdir())
    with tarfile.open(tmp_path / "shards" / "val" / "imagenet-val-000000.tar") as archive:
        for path in pictures:
            assert archive.extractfile(f"{path.stem}.jpeg").read() == path.read_bytes()
            label = archive.extractfile(f"{path.stem}.cls").read()
            assert int(label) == classes.index(path.parent.name)


def test_set_without_a_split(gmf, folders, tmp_path):
    words = ("shard-data", "imagenet", folders / "train", "shards", "--val-fraction", 0.2)
    result = gmf(*words)
    assert result.code == 0, result.err
    data = ImageNet(str(tmp_path / "shards"), num_workers=0, global_batch_size=8)
    parts = [data.samples(split) for split in ("training", "validation")]
    names = [{part.id(i).split("/", 2)[2] for i in range(len(part))} for part in parts]
    assert len(names[0]) + len(names[1]) == len(names[0] | names[1]) == 30
    assert len(names[1]) >= 3


def test_unreadable_image_is_named(gmf, folders, tmp_path):
    root = tmp_path / "spoilt"
    for path in folders.rglob("*.JPEG"):
        target = root / path.relative_to(folders)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    broken = min((root / "train").rglob("*.JPEG"))
    broken.write_bytes(broken.read_bytes()[:300])
    result = gmf("shard-data", "imagenet", root, "shards")
    assert result.code == 2
    assert f"{broken.relative_to(root)}: is cut off" in result.err


def test_empty_class_folder_is_named(gmf, folders, tmp_path):
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "train").symlink_to(tmp_path / "train")
    (tmp_path / "train" / "n00000000").mkdir(parents=True)
    for folder in (folders / "train").iterdir():
        (tmp_path / "train" / folder.name).symlink_to(folder)
    result = gmf("shard-data", "imagenet", tmp_path / "copy", "shards", "--split", "train")
    assert result.code == 2
    assert "n00000000" in result.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--shard-size", "big"), "big is no size; 500MB and 1GB are"),
        (("--shard-size", "0MB"), "0MB is no size"),
        (("--shard-size", "1GB", "--samples-per-shard", 5), "not allowed with"),
        (("--samples-per-shard", 0), "--samples-per-shard must be 1 or more"),
        (("--workers", 0), "--workers must be 1 or more"),
        (("--seed", -1), "--seed must be 0 or more"),
        (("--split", "test"), "invalid choice: 'test'"),
    ],
)
def test_wrong_options(shard, words, said):
    result = shard(*words)
    assert result.code == 2
    assert said in result.err


def test_wrong_folders(gmf, folders):
    result = gmf("shard-data", "imagenet", "nowhere", "shards")
    assert (result.code, result.err) == (2, "error: shard-data: no folder nowhere\n")
    for inside in (folders, folders / "shards"):
        result = gmf("shard-data", "imagenet", folders, inside)
        assert result.code == 2
        assert "name a folder outside it" in result.err
