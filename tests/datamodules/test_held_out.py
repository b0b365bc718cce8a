"""Which samples are for validation."""

import pytest

from datamodules.held_out import chosen_by_hash, listed_names, write_list
from gmf_platform.errors import UserError

NAMES = [f"a/{i}.jpg" for i in range(100)]


def test_the_choice_hardly_changes_with_more_names():
    chosen = chosen_by_hash(NAMES, 20, seed=0)
    assert len(chosen) == 20
    assert chosen_by_hash(NAMES[::-1], 20, seed=0) == chosen
    assert chosen_by_hash(NAMES, 20, seed=1) != chosen
    more = chosen_by_hash([*NAMES, *(f"b/{i}.jpg" for i in range(10))], 22, seed=0)
    assert len(chosen - more) <= 5


def test_a_kept_list_is_read_back(tmp_path):
    write_list(tmp_path / "run", NAMES[5:9])
    path = tmp_path / "run" / "validation.txt"
    assert listed_names(path, NAMES, what="image") == set(NAMES[5:9])


def test_names_may_be_short_where_that_is_clear(tmp_path):
    path = tmp_path / "val.txt"
    path.write_text("3\na/4\n5.jpg\n\na/6.jpg\n")
    assert listed_names(path, NAMES, what="image") == {f"a/{i}.jpg" for i in (3, 4, 5, 6)}
    with pytest.raises(UserError, match=r"the first is '3': 2 images are called so"):
        listed_names(path, [*NAMES, "b/3.jpg"], what="image")
    path.write_text("nothing\n")
    with pytest.raises(UserError, match=r"1 of 1 lines .* no image is called so .*like a/0\.jpg"):
        listed_names(path, NAMES, what="image")


def test_a_list_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"data\.val_list: .*none\.txt: cannot be read: No such"):
        listed_names(tmp_path / "none.txt", ["a.jpg"], what="image")
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"data\.val_list: .*list\.txt: cannot be read: it is no"):
        listed_names(tmp_path / "list.txt", ["a.jpg"], what="image")
