"""Tar shards: read as the webdataset package and tarfile read them, in an order that is exact."""

import io
import os
import pickle
import tarfile
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from torch.utils.data import Dataset

from datamodules.class_samples import FolderSamples
from datamodules.images import DataError, Flaw
from datamodules.loader import TrainLoader
from datamodules.shards import ShardOrder, ShardSamples, find_shards, write_shards
from datamodules.shards import samples as shard_samples
from datamodules.shards.index import ShardIndex, scan_shard, split_name
from gmf_platform.distributed.order import SampleOrder, TrainBatches, plan_batches

CLASSES = ["n01", "n02", "n03"]
COUNT = 60


def picture(number, kind="JPEG"):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """60 pictures of 3 classes, with names as people give them."""
    root, entries = tmp_path_factory.mktemp("source"), []
    for i in range(COUNT):
        name, kind = f"{i}.JPEG", "JPEG"
        match i:
            case 5 | 6:
                name, kind = ("twice.png", "PNG") if i == 5 else ("twice.jpg", "JPEG")
            case 7:
                name = f"größe.v2.{'x' * 120}.jpg"
        path = root / "train" / CLASSES[i // 20] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(i, kind))
        entries.append((path.relative_to(root).as_posix(), i // 20))
    return FolderSamples(root, entries)


@pytest.fixture(scope="module")
def written(source, tmp_path_factory):
    """The pictures in 8 shards; not to be written to."""
    root = tmp_path_factory.mktemp("written")
    write_shards(source, root, split="train", class_names=CLASSES, name="tiny", samples_per_shard=8)
    return root


@pytest.fixture
def copied(written, tmp_path):
    """The same, to be spoilt."""
    root = tmp_path / "copied"
    for path in written.rglob("*.*"):
        target = root / path.relative_to(written)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return root


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    shard_samples._open.cache_clear()


def pairs(samples):
    return [(samples.read(i), samples.label(i)) for i in range(len(samples))]


def by_webdataset(shards):
    """The pairs that the webdataset package reads; it fails where a key comes twice."""
    stream = webdataset.WebDataset([str(path) for path in shards], shardshuffle=False)
    return [
        (next(sample[s] for s in ("jpeg", "jpg", "png") if s in sample), int(sample["cls"]))
        for sample in stream
    ]


def test_webdataset_reads_the_same(source, written):
    samples = ShardSamples.open(written, "train")
    assert by_webdataset(find_shards(written, "train")) == pairs(samples)
    assert sorted(pairs(samples)) == sorted(pairs(source))
    assert samples.class_names == CLASSES


def test_tarfile_reads_the_same(written):
    samples = ShardSamples.open(written, "train")
    found = {}
    for shard in find_shards(written, "train"):
        with tarfile.open(shard) as archive:
            for member in archive:
                found[f"train/{shard.name}/{member.name}"] = archive.extractfile(member).read()
    for i in range(COUNT):
        assert found.pop(samples.id(i)) == samples.read(i)
        label = found.pop(samples.id(i).rpartition(".")[0] + ".cls")
        assert label == str(samples.label(i)).encode()
    assert not found


def test_index_is_what_a_scan_finds(written):
    index = ShardIndex.load(written / "index-train.npz")
    scanned = ShardIndex.joined([scan_shard(written / name, name) for name in index.shards])
    assert (scanned.shards, scanned.names.text) == (index.shards, index.names.text)
    for name in ("shard_bytes", "counts", "offsets", "sizes", "labels"):
        assert np.array_equal(getattr(scanned, name), getattr(index, name)), name
    assert np.array_equal(scanned.names.ends, index.names.ends)


@pytest.mark.parametrize("name", ["a/b.jpg", "a.b/c.d.jpg", "./a/b.cls", "b", "a/b.c.d", "ä.x"])
def test_names_are_split_as_webdataset_does(name):
    expected = webdataset.tariterators.base_plus_ext(name)
    key, suffix = split_name(name)
    assert (key, suffix.removeprefix(".")) == (expected if expected[0] else (name, ""))


@pytest.fixture
def foreign(tmp_path):
    """Shards by the webdataset package, as on the Hugging Face hub: in one folder, with JSON."""
    root = tmp_path / "foreign"
    root.mkdir()
    for split, shards in (("train", 3), ("validation", 1)):
        for shard in range(shards):
            with webdataset.TarWriter(str(root / f"imagenet1k-{split}-{shard:04d}.tar")) as writer:
                for i in range(5):
                    number = 5 * shard + i
                    content = {"jpg": picture(number), "cls": number % 3, "json": {"width": 9}}
                    writer.write({"__key__": f"n0{number % 3}_{number}", **content})
    return root


def test_shards_of_others(foreign):
    samples = ShardSamples.open(foreign, "train")
    assert pairs(samples) == [(picture(i), i % 3) for i in range(15)]
    assert samples.id(6) == "imagenet1k-train-0001.tar/n00_6.jpg"
    assert samples.class_names is None
    assert len(ShardSamples.open(foreign, "val")) == 5


@pytest.mark.parametrize("writable", [True, False])
def test_headers_are_read_once(foreign, writable, monkeypatch):
    if not writable:
        (foreign / "index-train.npz").mkdir()  # nothing can be saved in its place
    first = pairs(ShardSamples.open(foreign, "train"))
    assert (foreign / "index-train.npz").is_file() == writable
    monkeypatch.delattr(tarfile, "open")
    assert pairs(ShardSamples.open(foreign, "train")) == first
    assert not list(foreign.glob(".index*"))


def test_damaged_index_is_said(copied):
    index = copied / "index-train.npz"
    index.write_bytes(index.read_bytes()[:500])
    with pytest.raises(DataError, match=r"index-train.npz: cannot be read .* Delete it"):
        ShardSamples.open(copied, "train")
    index.unlink()
    assert len(ShardSamples.open(copied, "train")) == COUNT


class Keys(Dataset):
    """What a datamodule makes of the shards: here the key, the bytes and the label."""

    def __init__(self, samples):
        self.samples = samples

    def __getitem__(self, key):
        return tuple(key), self.samples.read(key.sample), self.samples.label(key.sample)


def loaders(root, ranks, workers, *, steps=20):
    samples = ShardSamples.open(root, "train")
    plan = plan_batches(12, ranks, None)
    samples.read(0)  # this process has a file open when the workers begin
    return [
        TrainLoader(
            Keys(samples),
            TrainBatches(samples.order(seed=3), plan, rank=rank, steps=steps),
            collate=list,
            num_workers=workers,
            pin_memory=False,
        )
        for rank in range(ranks)
    ]


def joined(parts):
    """The batches of all ranks as one list of samples."""
    return [sample for batches in zip(*parts, strict=True) for batch in batches for sample in batch]


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 2), (2, 1), (3, 2)])
def test_each_sample_once_an_epoch(written, ranks, workers):
    parts = loaders(written, ranks, workers)
    seen = joined([list(part) for part in parts])
    for part in parts:
        part.close()
    samples = ShardSamples.open(written, "train")
    assert Counter(key for key, _, _ in seen) == {(e, i): 1 for e in range(4) for i in range(COUNT)}
    assert all((data, n) == (samples.read(i), samples.label(i)) for (_, i), data, n in seen)


def test_ranks_and_workers_change_nothing(written):
    (alone,) = loaders(written, 1, 0)
    parts = loaders(written, 3, 1)
    assert joined([list(part) for part in parts]) == joined([list(alone)])
    for part in parts:
        part.close()


@pytest.mark.parametrize(("ranks", "done"), [(1, 3), (2, 7)])
def test_goes_on_in_mid_epoch(written, ranks, done):
    (whole,) = loaders(written, 1, 0)
    stopped = loaders(written, 2, 0)
    begun = joined([list(islice(part, done)) for part in stopped])
    resumed = loaders(written, ranks, 2)
    for part in resumed:
        part.load_state_dict(stopped[0].state_dict())
    rest = joined([list(part) for part in resumed])
    for part in resumed:
        part.close()
    assert begun + rest == joined([list(whole)])


def test_epochs_differ(written):
    (alone,) = loaders(written, 1, 0)
    orders = [
        [key[1] for key, _, _ in joined([alone])[e * COUNT : (e + 1) * COUNT]] for e in (0, 1)
    ]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(COUNT))


def imagenet_order(**settings):
    """Of ImageNet's size: 285 shards of 4495 or 4496 images."""
    counts = np.array([len(part) for part in np.array_split(np.arange(1281167), 285)])
    return ShardOrder(counts, seed=0, **settings), np.cumsum(counts)


def epoch_of(order, epoch, stop=None):
    size = order.num_samples
    return np.array([order[epoch * size + i].sample for i in range(stop or size)])


def test_an_epoch_of_imagenet_is_each_sample_once():
    order, _ = imagenet_order()
    assert np.array_equal(np.sort(epoch_of(order, 1)), np.arange(order.num_samples))


def test_a_batch_is_a_few_runs_of_neighbours():
    """128 images of a rank: 5 reads, not 128; 1000 images: 8 shards, not 276."""
    order, ends = imagenet_order()
    batches = epoch_of(order, 0, 128 * 1000).reshape(1000, 128)
    runs = 1 + np.count_nonzero(np.diff(batches) != 1, axis=1)
    assert runs.mean() < 5.1
    shards = np.searchsorted(ends, batches.reshape(-1, 1000), side="right")
    assert max(len(set(row)) for row in shards) <= 16  # two groups, where one ends
    assert np.median([len(set(row)) for row in shards]) == 8


def test_neighbours_part_from_epoch_to_epoch():
    order, _ = imagenet_order()
    cuts = [
        set(e[:-1][np.diff(e) != 1]) for e in (epoch_of(order, epoch, 200_000) for epoch in (0, 1))
    ]
    shared = len(cuts[0] & cuts[1]) / len(cuts[0])
    assert shared < 0.02  # by chance: a cut each 32, in a sixth of the set


def test_blocks_are_shuffled_within_groups_of_shards():
    order = ShardOrder(np.full(9, 64), seed=1, block=8, group=3)
    shards = epoch_of(order, 0) // 64
    groups = [set(part) for part in shards.reshape(3, -1)]
    assert sorted(shard for group in groups for shard in group) == list(range(9))
    assert np.count_nonzero(np.diff(shards)) > 50  # of 75 blocks, two thirds change the shard


def test_small_sets_mix_single_samples(written):
    assert ShardSamples.open(written, "train").order(seed=0).block == 1


def test_sorted_shards_are_read_in_a_random_order(tmp_path, caplog):
    (tmp_path / "train").mkdir()
    for shard in range(4):
        with webdataset.TarWriter(str(tmp_path / "train" / f"{shard}.tar")) as writer:
            for i in range(50):
                writer.write({"__key__": f"{shard}_{i}", "jpg": b"x", "cls": shard // 2})
    order = ShardSamples.open(tmp_path, "train").order(seed=7)
    assert type(order) is SampleOrder
    assert "sorted by class" in caplog.text
    assert np.array_equal(epoch_of(order, 0), epoch_of(SampleOrder(200, seed=7), 0))


def shard_at(root, number=2):
    return find_shards(root, "train")[number]


def test_cut_off_shard_is_said_before_training(copied):
    shard = shard_at(copied)
    size = shard.stat().st_size
    os.truncate(shard, size - 700)
    with pytest.raises(DataError) as said:
        ShardSamples.open(copied, "train")
    assert str(said.value).startswith(f"{shard}: is cut off: it has {size - 700} bytes of {size}.")


@pytest.mark.parametrize("indexed", [True, False])
def test_all_cut_off_shards_are_said(copied, indexed):
    for number in (1, 4):
        os.truncate(shard_at(copied, number), 700)
    if not indexed:
        (copied / "index-train.npz").unlink()
    with pytest.raises(DataError, match=r"000001.tar: is cut off.*\n.*000004.tar: is cut off") as e:
        ShardSamples.open(copied, "train")
    assert e.value.flaw == Flaw.TRUNCATED
    assert len(str(e.value).splitlines()) == 2


@pytest.mark.parametrize("where", ["data", "header", "between", "end"])
def test_cut_off_shard_is_said_without_index(foreign, where):
    shard = shard_at(foreign)
    with tarfile.open(shard) as archive:
        third = archive.getmembers()[6]
        end = archive.offset
    cut = {
        "data": third.offset_data + 100,
        "header": third.offset + 100,
        "between": third.offset,
        "end": end + 512,
    }[where]
    os.truncate(shard, cut)
    with pytest.raises(DataError, match=rf"{shard}: is cut off: it has {cut} bytes, .* need \d+"):
        ShardSamples.open(foreign, "train")
    assert not (foreign / "index-train.npz").exists()


def test_shard_that_is_cut_off_during_training(copied):
    samples = ShardSamples.open(copied, "train")
    last = int(samples.index.counts[:3].sum()) - 1
    assert samples.read(last)
    os.truncate(shard_at(copied), int(samples.index.offsets[last]) + 10)
    with pytest.raises(DataError, match=r"000002.tar: is cut off: it ends before byte"):
        samples.read(last)


def test_missing_shard(copied):
    shard_at(copied).unlink()
    with pytest.raises(DataError, match=r"000002.tar: is missing, with 0 more of 8 shards"):
        ShardSamples.open(copied, "train")


def test_shard_that_vanishes_during_training(copied):
    samples = ShardSamples.open(copied, "train")
    shard_at(copied, 0).unlink()
    with pytest.raises(DataError, match=r"000000.tar: cannot be read: No such file"):
        samples.read(0)


def test_shards_that_changed_are_said(copied):
    with shard_at(copied).open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(DataError, match=r"000002.tar: has \d+ bytes and not \d+"):
        ShardSamples.open(copied, "train")
    (copied / "train" / "more.tar").write_bytes(b"")
    shard_at(copied).write_bytes(shard_at(copied).read_bytes()[:-512])
    with pytest.raises(DataError, match=r"more.tar: is not in .*index-train.npz"):
        ShardSamples.open(copied, "train")


def test_damage_between_members(foreign):
    shard = shard_at(foreign)
    with tarfile.open(shard) as archive:
        fourth = archive.getmembers()[9].offset
    data = bytearray(shard.read_bytes())
    data[fourth : fourth + 512] = b"?" * 512
    shard.write_bytes(data)
    with pytest.raises(DataError, match=rf"{shard}: is damaged: no member .* byte {fourth}"):
        ShardSamples.open(foreign, "train")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"a.jpg": b"x"}, "a has members .jpg, but an image"),
        ({"a.cls": b"1"}, "a has members .cls, but an image"),
        ({"a.jpg": b"x", "a.cls": b"cat"}, "a.cls holds b'cat', which is no class number"),
    ],
)
def test_other_tar_files_are_refused(tmp_path, content, said):
    (tmp_path / "train").mkdir()
    with tarfile.open(tmp_path / "train" / "0.tar", "w") as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    with pytest.raises(DataError) as error:
        ShardSamples.open(tmp_path, "train")
    assert said in str(error.value)


@pytest.mark.parametrize("content", [b"", b"no tar file at all" * 100])
def test_what_is_no_tar_file_is_refused(tmp_path, content):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "0.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"0.tar: is not a tar file"):
        ShardSamples.open(tmp_path, "train")


def test_no_shards(tmp_path):
    assert find_shards(tmp_path, "train") == []
    with pytest.raises(DataError, match=r"has no shards \*.tar for val"):
        ShardSamples.open(tmp_path, "val")


def test_open_files_are_bounded(tmp_path):
    (tmp_path / "train").mkdir()
    for shard in range(100):
        with webdataset.TarWriter(str(tmp_path / "train" / f"{shard:03d}.tar")) as writer:
            writer.write({"__key__": f"{shard}", "jpg": b"%d" % shard, "cls": 0})
    samples = ShardSamples.open(tmp_path, "train")
    for _ in range(2):
        assert [samples.read(i) for i in range(100)] == [b"%d" % i for i in range(100)]
    opened = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    assert sum(name.startswith(str(tmp_path)) for name in opened) == 64


def test_reads_that_come_in_parts(written, monkeypatch):
    samples = ShardSamples.open(written, "train")
    whole = pairs(samples)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, at: pread(file, min(size, 100), at))
    assert pairs(samples) == whole


def test_pickled_for_a_worker(written):
    samples = ShardSamples.open(written, "train")
    expected = pairs(samples)
    assert pairs(pickle.loads(pickle.dumps(samples))) == expected
