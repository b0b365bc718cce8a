"""Writing of tar shards: whole or not at all, gone on with, never over anything."""

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import pytest
from PIL import Image

from datamodules.images import DataError, read_bytes
from datamodules.shards import ShardSamples, find_shards, writer
from datamodules.shards.writer import write_shards
from gmf_platform.errors import UserError

CLASSES = ["cat", "dog"]


def picture(number):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (number, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


PICTURES = [picture(i) for i in range(40)]


@dataclass
class Pictures:
    """40 pictures in memory, sorted by class; some may be spoilt."""

    ids: list[str]
    pictures: list[bytes]

    def __len__(self):
        return len(self.ids)

    def read(self, index):
        return self.pictures[index]

    def label(self, index):
        return index * 2 // len(self.ids)

    def id(self, index):
        return self.ids[index]


def pictures(**spoilt):
    ids = [f"train/{CLASSES[i // 20]}/{i}.JPG" for i in range(40)]
    return Pictures(ids, [spoilt.get(f"_{i}", data) for i, data in enumerate(PICTURES)])


def write(root, samples=None, **settings):
    return write_shards(
        pictures() if samples is None else samples,
        root,
        **{"split": "train", "class_names": CLASSES, "name": "pets", "samples_per_shard": 4}
        | settings,
    )


def content(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*.*")}


def stamps(root):
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in root.rglob("*.tar")}


def test_what_is_written(tmp_path):
    done = []
    written = write(tmp_path, progress=lambda *seen: done.append(seen), samples_per_shard=7)
    names = [f"pets-train-{i:06d}.tar" for i in range(6)]
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["index-train.npz", *names]
    assert (written.images, written.shards, written.new_shards) == (40, 6, 6)
    assert (
        written.bytes == written.new_bytes == sum(p.stat().st_size for p in tmp_path.rglob("*.tar"))
    )
    assert done == [(i + 1, 40) for i in range(40)]
    samples = ShardSamples.open(tmp_path, "train")
    assert samples.index.counts.tolist() == [7, 7, 7, 7, 6, 6]
    assert sorted(map(samples.read, range(40))) == sorted(PICTURES)
    assert samples.id(0).startswith("train/pets-train-000000.tar/")
    key = samples.id(0).split("/", 2)[2]
    assert samples.read(0) == PICTURES[int(key.split("/")[1].removesuffix(".jpg"))]


def test_shards_are_not_sorted_by_class(tmp_path):
    write(tmp_path)
    labels = ShardSamples.open(tmp_path, "train").index.labels
    assert 10 < np.count_nonzero(np.diff(labels)) < 30  # 20 of 39 by chance


def test_same_bytes_with_any_number_of_workers(tmp_path):
    for workers in (1, 3):
        write(tmp_path / str(workers), workers=workers)
    assert content(tmp_path / "1") == content(tmp_path / "3")
    write(tmp_path / "other", seed=1)
    assert content(tmp_path / "other") != content(tmp_path / "1")


def test_size_of_a_shard(tmp_path):
    big = Pictures(
        [f"{i}.jpg" for i in range(40)], [PICTURES[0][:-2] + bytes(9000) + b"\xff\xd9"] * 40
    )
    write(tmp_path, big, samples_per_shard=None, shard_bytes=100_000)
    sizes = [path.stat().st_size for path in find_shards(tmp_path, "train")]
    assert len(sizes) == 5
    assert all(85_000 < size < 110_000 for size in sizes)


def test_keys_are_unique_and_without_dots(tmp_path):
    names = ["a.jpg", "a.jpeg", "a.JPG", "b.v2.jpg", "b_v2.jpg", "x.y/c.jpg"]
    write(tmp_path, Pictures(names, PICTURES[:6]), samples_per_shard=6)
    with tarfile.open(find_shards(tmp_path, "train")[0]) as archive:
        keys = {name.removesuffix(".cls") for name in archive.getnames() if name.endswith(".cls")}
    assert keys == {"a", "a_", "a__", "b_v2", "b_v2_", "x.y/c"}


def test_again_is_nothing_to_do(tmp_path):
    write(tmp_path)
    before = content(tmp_path), stamps(tmp_path)
    again = write(tmp_path)
    assert (again.images, again.shards, again.new_shards, again.new_bytes) == (40, 10, 0, 0)
    assert (content(tmp_path), stamps(tmp_path)) == before


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"seed": 1}, "seed 0 in place of 1"),
        ({"samples_per_shard": 8}, "shards 10 in place of 5"),
        ({"class_names": ["cat", "wolf"]}, "of other images"),
        ({"samples": Pictures([f"new/{i}.jpg" for i in range(40)], PICTURES)}, "of other images"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_other_shards_are_not_overwritten(tmp_path, settings, said, finished):
    root, fresh = tmp_path / "root", tmp_path / "fresh"
    write(root)
    if not finished:
        leave_unfinished(root)
    before = content(root)
    with pytest.raises(UserError, match=rf"holds other shards .*{said}.*--overwrite"):
        write(root, **settings)
    assert content(root) == before
    write(root, **settings, overwrite=True)
    write(fresh, **settings)
    assert content(root) == content(fresh)


def leave_unfinished(root):
    """As a run that was killed leaves it: two shards missing, one begun."""

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    for path in find_shards(root, "train")[-2:]:
        path.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="the disk is full"):
            write(root)
    (root / "train" / ".pets-train-000009.tar.partial").write_bytes(b"begun")


@pytest.mark.parametrize("scanned", [True, False])
def test_tar_files_of_others_are_never_touched(tmp_path, scanned):
    (tmp_path / "train").mkdir()
    other = tmp_path / "train" / "n01440764.tar"
    with tarfile.open(other, "w") as archive:
        for name, data in (("a.jpg", b"x"), ("a.cls", b"0")):
            info = tarfile.TarInfo(name)
            info.size = 1
            archive.addfile(info, io.BytesIO(data))
    if scanned:
        ShardSamples.open(tmp_path, "train")
    before = content(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(UserError, match="that shard-data has not written: name another folder"):
            write(tmp_path, overwrite=overwrite)
    assert content(tmp_path) == before


def test_missing_shard_is_written_again(tmp_path):
    write(tmp_path)
    before, times = content(tmp_path), stamps(tmp_path)
    gone = find_shards(tmp_path, "train")[4]
    gone.unlink()
    times.pop(gone)
    assert write(tmp_path).new_shards == 1
    assert content(tmp_path) == before
    assert times.items() <= stamps(tmp_path).items()


def test_cut_off_shard_stops_and_is_mended(tmp_path):
    write(tmp_path)
    before = content(tmp_path)
    broken = find_shards(tmp_path, "train")[4]
    os.truncate(broken, 3000)
    with pytest.raises(DataError, match=rf"{broken}: is cut off: it has 3000 bytes"):
        write(tmp_path)
    with pytest.raises(DataError, match="has not finished here"):
        ShardSamples.open(tmp_path, "train")
    broken.unlink()
    assert write(tmp_path).new_shards == 1
    assert content(tmp_path) == before


def test_shard_of_other_images_stops(tmp_path):
    write(tmp_path)
    leave_unfinished(tmp_path)
    first, second = find_shards(tmp_path, "train")[:2]
    shutil.copy(second, first)
    with pytest.raises(DataError, match=r"000000.tar: holds other images"):
        write(tmp_path)


def test_shards_whose_index_is_lost_stay(tmp_path):
    write(tmp_path)
    (tmp_path / "index-train.npz").unlink()
    with pytest.raises(UserError, match="that shard-data has not written"):
        write(tmp_path, overwrite=True)
    assert len(ShardSamples.open(tmp_path, "train")) == 40


_SLOW = """
import sys, time
from pathlib import Path
import tests_pictures as t

class Slow(t.Pictures):
    def read(self, index):
        time.sleep(0.01)
        return super().read(index)

p = t.pictures()
t.write(Path(sys.argv[1]), Slow(p.ids, p.pictures), workers=2)
"""


def test_killed_run_goes_on(tmp_path):
    (tmp_path / "tests_pictures.py").write_text(Path(__file__).read_text())
    root, whole = tmp_path / "killed", tmp_path / "whole"
    write(whole)
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOW, str(root)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )
    deadline = time.monotonic() + 30
    while len(find_shards(root, "train")) < 3 and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = stamps(root)
    assert 3 <= len(kept) < 10
    with pytest.raises(DataError, match=r"unfinished-train.json: shard-data has not finished here"):
        ShardSamples.open(root, "train")
    written = write(root)
    assert written.new_shards == 10 - len(kept)
    assert kept.items() <= stamps(root).items()
    assert content(root) == content(whole)


def test_full_disk_leaves_no_parts_and_goes_on(tmp_path):
    root, whole = tmp_path / "full", tmp_path / "whole"
    write(whole)
    write(root)
    leave_unfinished(root)
    (root / "train" / ".pets-train-000009.tar.partial").unlink()
    assert not list(root.rglob("*.partial"))
    assert write(root).new_shards == 2
    assert content(root) == content(whole)


def test_disk_too_small_is_said_before_writing(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    with pytest.raises(UserError, match=r"has 0.0 GB free, and the shards need about 0.0 GB"):
        write(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/x: cannot be written: Not a directory"):
        write(tmp_path / "file" / "x")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (PICTURES[11][:200], r"train/cat/11.JPG: is cut off"),
        (b"<html>not found</html>", r"train/cat/11.JPG: is not an image"),
    ],
)
def test_unreadable_image_is_named_and_may_be_replaced(tmp_path, data, said):
    with pytest.raises(DataError, match=said):
        write(tmp_path, pictures(_11=data))
    assert not list(tmp_path.rglob("*.partial"))
    assert write(tmp_path).images == 40
    assert len(ShardSamples.open(tmp_path, "train")) == 40


def test_the_first_error_stops_the_others(tmp_path):
    class Counting(Pictures):
        reads, lock = 0, Lock()

        def read(self, index):
            with self.lock:
                self.reads += 1
            if self.reads > 42:  # 40 reads are for the mean size
                raise DataError("broken.jpg: is cut off")
            time.sleep(0.001)
            return super().read(index)

    samples = Counting(pictures().ids, PICTURES)
    with pytest.raises(DataError, match=r"^broken.jpg: is cut off$"):
        write(tmp_path, samples, workers=2)
    assert samples.reads < 50


def test_file_that_is_not_there(tmp_path):
    class Missing(Pictures):
        def read(self, index):
            return read_bytes("/nowhere/5.jpg") if index == 5 else super().read(index)

    with pytest.raises(DataError, match=r"/nowhere/5.jpg: there is no such file"):
        write(tmp_path, Missing(pictures().ids, PICTURES))


def test_class_without_images(tmp_path):
    names = ["cat", "dog", "wolf", "fox"]
    with pytest.raises(UserError, match=r"train: no image of 2 of 4 classes: wolf, fox\."):
        write(tmp_path, class_names=names)
    assert write(tmp_path, split="val", class_names=names).images == 40  # some have few
    with pytest.raises(UserError, match=r"val: no image of 2 of 2 classes"):
        write(tmp_path / "new", Pictures([], []), split="val")
