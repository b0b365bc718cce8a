import argparse

import pytest

from gmf_platform.cli.arguments import Arguments
from gmf_platform.cli.sources import Entry, Sources, canonical
from gmf_platform.errors import UserError


@pytest.fixture
def read(tmp_path):
    """Sources of config texts, named a.yaml, b.yaml, ..., and overrides."""

    def make(*texts, **overrides):
        paths = [tmp_path / f"{name}.yaml" for name in "abc"[: len(texts)]]
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text)
        pairs = [(key.replace("__", "."), value) for key, value in overrides.items()]
        return Sources(Arguments(argparse.Namespace(), paths, pairs))

    return make


def test_canonical():
    assert canonical("model.init_args.backbone.init_args.variant") == "model.backbone.variant"
    assert canonical("model.backbone.variant") == "model.backbone.variant"


def test_entries_have_places(read, tmp_path):
    sources = read("# first\ndata:\n  class_path: X\n  init_args:\n    root: r\n", data__root="s")
    a = tmp_path / "a.yaml"
    assert sources.entries == [
        Entry("data", None, f"{a}:2", mapping=True),
        Entry("data.class_path", "X", f"{a}:3"),
        Entry("data.root", "r", f"{a}:5"),
        Entry("data.root", "s", "command line"),
    ]
    assert sources.place("data.root") == "command line"
    assert sources.place("data.class_path") == f"{a}:3"
    assert sources.place("data.nothing") == ""


def test_errors_that_begin_with_a_key_get_its_place(read, tmp_path):
    sources = read("data: {init_args: {size: 0}}")
    for said, placed in (
        ("data.size: is nothing", f"{tmp_path / 'a.yaml'}:1: data.size: is nothing"),
        ("data.size 0 is nothing", f"{tmp_path / 'a.yaml'}:1: data.size 0 is nothing"),
        ("data.root: is not set", "data.root: is not set"),
        ("/data.size: no such file", "/data.size: no such file"),
    ):
        with pytest.raises(UserError) as error, sources.placing():
            raise UserError(said)
        assert str(error.value) == placed


def test_later_wins(read):
    first, second = "data: {init_args: {root: a, size: 1}}", "data: {root: b}"
    sources = read(first, second)
    assert (sources.value("data.root"), sources.value("data.size")) == ("b", 1)
    assert read(first, second, data__root="c").value("data.root") == "c"
    assert read(first, second, data__init_args__root="d").value("data.root") == "d"
    assert sources.value("data.nothing") is None


def test_interpolation_across_files_and_command_line(read, monkeypatch):
    first = "data: {init_args: {root: /sets, name: '${data.init_args.root}/ade'}}"
    second = "other: ${data.init_args.name}"
    assert read(first, second).value("other") == "/sets/ade"
    assert read(first, second, data__root="/mine").value("other") == "/mine/ade"
    environment = "root: ${oc.env:SOME_FOLDER,data}/ade"
    monkeypatch.delenv("SOME_FOLDER", raising=False)
    assert read(environment).value("root") == "data/ade"
    monkeypatch.setenv("SOME_FOLDER", "/sets")
    assert read(environment).value("root") == "/sets/ade"


def test_what_cannot_be_told_is_left_to_the_parser(read):
    assert read("root: ${nothing.here}").value("root") is None
    assert read("root: ${oops").value("root") is None


@pytest.mark.parametrize(
    ("value", "expected"), [("3", 3), ("[1, 2]", [1, 2]), ("null", None), ("a: [", "a: [")]
)
def test_overrides_are_yaml(read, value, expected):
    assert read("{}", key=value).value("key") == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: [3", "not valid YAML"),
        (b"\xff\xfe", "not valid YAML"),
        (b"- 3", "is a list or a single value; a config is a mapping"),
        (b"# nothing yet\n", "is empty; a config is a mapping"),
    ],
)
def test_what_is_no_config_names_the_file(tmp_path, content, said):
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        Sources(Arguments(argparse.Namespace(), [path], []))
    assert str(error.value).startswith(str(path))
