from pathlib import Path

import pytest

from gmf_platform.cli.arguments import VerbParser, find_config, parse_arguments, shipped_folder
from gmf_platform.cli.fit import fit_parser
from gmf_platform.errors import UserError

SEG = shipped_folder("configs") / "seg_ade20k.yaml"


@pytest.fixture
def parser():
    parser = VerbParser("fit", "Train.")
    parser.add_weights()
    return parser


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        ["--data.root", "/d", "--trainer.max_steps", "9", "--config", "seg_ade20k"],
        ["--config", "seg_ade20k", "--data.root", "/d", "--trainer.max_steps", "9"],
        ["--data.root=/d", "--config=seg_ade20k", "--trainer.max_steps=9"],
        ["--data.root", "/d", "--config", "seg_ade20k", "--trainer.max_steps", "9"],
    ],
)
def test_overrides_wherever_they_stand(parser, words):
    arguments = parse_arguments(parser, words)
    assert arguments.configs == [SEG]
    assert arguments.overrides == [("data.root", "/d"), ("trainer.max_steps", "9")]
    assert arguments.for_parser() == [
        "--config",
        str(SEG),
        "--data.root=/d",
        "--trainer.max_steps=9",
    ]


@pytest.mark.parametrize("value", ["-1", "a=b", "[1, 2]", "", "{lr: 1}", "a b"])
def test_values_are_taken_as_they_are(parser, value):
    words = ["--config", "seg_ade20k", "--key", value, f"--other={value}"]
    assert parse_arguments(parser, words).overrides == [("key", value), ("other", value)]


def test_own_options_are_no_overrides(parser):
    arguments = parse_arguments(
        parser, ["--key", "1", "--ckpt_path", "a.ckpt", "--config", "seg_ade20k", "--allow-random"]
    )
    assert arguments.overrides == [("key", "1")]
    assert (arguments.options.ckpt_path, arguments.options.allow_random) == (Path("a.ckpt"), True)


def test_no_abbreviations(parser):
    arguments = parse_arguments(parser, ["--config", "seg_ade20k", "--ckpt", "a.ckpt"])
    assert arguments.options.ckpt_path is None
    assert arguments.overrides == [("ckpt", "a.ckpt")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data.root"], "--data.root needs a value"),
        (["--data.root", "--trainer.max_steps", "9"], "--data.root needs a value"),
        (["--data.root", "/d", "stray"], "unexpected word 'stray'"),
        (["-x", "3"], "unexpected word '-x'"),
        (["--ckpt_path"], "--ckpt_path: expected one argument"),
    ],
)
def test_what_is_no_pair_is_refused(parser, words, said):
    with pytest.raises(UserError, match=said):
        parse_arguments(parser, ["--config", "seg_ade20k", *words])


def test_without_config_the_shipped_ones_are_named(parser):
    with pytest.raises(UserError, match=r"--config is missing. Shipped configs: .*seg_ade20k"):
        parse_arguments(parser, ["--data.root", "/d"])


@pytest.mark.parametrize("name", ["seg_ade20k", "seg_ade20k.yaml", "configs/seg_ade20k.yaml"])
def test_shipped_config_by_name(name):
    assert find_config(name) == SEG


def test_shipped_overlay_by_name():
    assert find_config("demo/seg") == SEG.parent / "demo" / "seg.yaml"
    assert find_config("backbone/mobile") == SEG.parent / "backbone" / "mobile.yaml"


def test_a_file_wins_over_a_shipped_name(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "seg_ade20k.yaml").write_text("{}")
    assert find_config("configs/seg_ade20k.yaml") == Path("configs/seg_ade20k.yaml")
    assert find_config("seg_ade20k") == SEG


def test_unknown_config_names_the_nearest():
    with pytest.raises(UserError, match="did you mean seg_ade20k") as error:
        find_config("seg_ade20")
    assert "cls_imagenet" not in str(error.value)
    with pytest.raises(UserError, match="did you mean backbone/small"):
        find_config("small")
    with pytest.raises(
        UserError, match=r"no such file\. Shipped configs: .* overlays are in .*demo/"
    ):
        find_config("xyz")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("seg_ade20k", "unexpected word 'seg_ade20k'; configs are named with --config"),
        ("--dry_run", "no option --dry_run; did you mean --dry-run"),
        ("--nmae=x", "no option --nmae; did you mean --name"),
    ],
)
def test_words_that_are_not_understood(word, said):
    with pytest.raises(UserError, match=said):
        parse_arguments(fit_parser("fit", ""), ["--config", "seg_ade20k", word])


def test_run_stands_for_its_config(parser, tmp_path):
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("{}")
    arguments = parse_arguments(parser, ["--run", str(run)])
    assert arguments.configs == [run / "config.yaml"]
    arguments = parse_arguments(parser, ["--config", "demo/seg", "--run", str(run)])
    assert arguments.configs[0] == run / "config.yaml"  # an overlay of it
    with pytest.raises(UserError, match=r"there is no run, since .*config\.yaml does not exist"):
        parse_arguments(parser, ["--run", str(tmp_path / "runs" / "b")])
