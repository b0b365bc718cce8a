import argparse

import pytest

from gmf_platform.cli.arguments import Arguments
from gmf_platform.cli.config_check import check_keys, parameter_names
from gmf_platform.cli.sources import Sources
from gmf_platform.errors import UserError


class Base:
    def __init__(self, root, *, batch=1):
        pass


class Passing(Base):
    def __init__(self, crop, **kwargs):
        super().__init__(**kwargs)


class Closed(Base):
    def __init__(self, crop):
        super().__init__(crop)


class Plain(Base):
    pass


@pytest.mark.parametrize(
    ("cls", "names"),
    [
        (Base, ["root", "batch"]),
        (Passing, ["crop", "root", "batch"]),
        (Closed, ["crop"]),
        (Plain, ["root", "batch"]),
    ],
)
def test_parameter_names(cls, names):
    assert parameter_names(cls) == names


# An unknown key at each level, in an overlay, on the command line; the nearest known one.
@pytest.mark.parametrize(
    ("text", "line", "key", "near"),
    [
        ("modle: {}\n", 1, "modle", "model"),
        ("trainer:\n  max_step: 3\n", 2, "trainer.max_step", "max_steps"),
        ("checkpoint:\n  every_n_step: 3\n", 2, "checkpoint.every_n_step", "every_n_steps"),
        ("data:\n\n  crop_sizes: 3\n", 3, "data.crop_sizes", "crop_size"),
        ("data:\n  init_args:\n    crop_sizes: 3\n", 3, "data.crop_sizes", "crop_size"),
        ("model:\n  axiliary_weight: 1\n", 2, "model.axiliary_weight", "auxiliary_weight"),
        ("model:\n  backbone:\n    varient: tiny\n", 3, "model.backbone.varient", "variant"),
        (
            "model:\n  init_args:\n    decode_head:\n      init_args:\n        chanels: 3\n",
            5,
            "model.decode_head.chanels",
            "channels",
        ),
        ("model:\n  optimizer:\n    lrr: 3\n", 3, "model.optimizer.lrr", "lr"),
    ],
)
def test_unknown_key(gmf, base, tmp_path, text, line, key, near):
    (tmp_path / "over.yaml").write_text(text)
    result = gmf("info", *base, "--config", "over.yaml")
    assert result.code == 2
    assert result.err.startswith(f"error: over.yaml:{line}: unknown key {key}: ")
    assert f"did you mean '{near}'?" in result.err
    result = gmf("info", *base, f"--{key}", "3")
    assert result.err.startswith(f"error: command line: unknown key {key}: ")
    assert f"did you mean '{near}'?" in result.err


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("data.crop_size", "many", "expected int, not 'many'"),
        ("data.scale", "[1,2,3]", "Expected a tuple with 2 elements. Got value: [1, 2, 3]"),
        ("trainer.max_steps", "1.5", "expected int, not '1.5'"),
        ("model.optimizer.lr", "fast", "expected float, not 'fast'"),
        ("model.backbone.variant", "tinny", "'small', 'base', 'large'], not 'tinny'"),
        ("model.norm", "synced", "expected Literal['sync', 'train', 'frozen'], not 'synced'"),
        (
            "model.optimizer.class_path",
            "torch.optim.AdamWW",
            "no class 'AdamWW' in torch.optim; did you mean 'AdamW'?",
        ),
        ("data.class_path", "datamodules.ADE20k", "in datamodules; did you mean 'ADE20K'?"),
        ("model.backbone.class_path", "gmf_platfrom.X", "No module named 'gmf_platfrom'"),
        ("model.backbone.class_path", "GroupMixFormer", "a class path is MODULE.CLASS"),
    ],
)
def test_wrong_value(gmf, base, tmp_path, key, value, said):
    result = gmf("info", *base, f"--{key}", value)
    assert result.code == 2
    assert result.err.startswith(f"error: command line: {key}: ")
    assert said in result.err
    assert len(result.err.splitlines()) == 1
    nested = value
    for part in reversed(key.split(".")):
        nested = f"{{{part}: {nested}}}"
    (tmp_path / "over.yaml").write_text(f"\n{nested}\n")
    result = gmf("info", *base, "--config", "over.yaml")
    assert result.err.startswith(f"error: over.yaml:2: {key}: ")
    assert said in result.err


def test_class_of_another_kind(gmf, base):
    result = gmf("info", *base, "--model.backbone.class_path", "gmf_platform.models.heads.UPerNet")
    assert result.code == 2
    assert "model.backbone: Problem with given class_path" in result.err


def test_constructor_refuses_in_its_own_words(gmf, base):
    result = gmf("fit", *base, "--data.classes", "[one]")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: data.classes: 1 classes")
    result = gmf("info", *base, "--model.backbone.depths", "[1,1]")
    assert result.code == 2
    assert "one number for each stage" in result.err


def test_trainer_refuses_in_its_own_words(gmf, base):
    result = gmf("info", *base, "--trainer.accelerator", "abacus")
    assert result.code == 2
    assert result.err.startswith("error: trainer: ")
    assert "abacus" in result.err


def test_overlay_alone(gmf, overlay):
    result = gmf("fit", "--config", overlay)
    assert result.code == 2
    assert "names no model.class_path: an overlay goes behind a task's config" in result.err


def check(tmp_path, *texts, pairs=()):
    paths = [tmp_path / f"{number}.yaml" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    check_keys(Sources(Arguments(argparse.Namespace(), paths, list(pairs))), ["model", "data"], {})


def test_keys_count_for_the_class_of_their_time(tmp_path):
    """An overlay may change a class whose former keys the new one does not have."""
    model = "model: {class_path: torch.nn.Identity}\n"
    data = "data: {class_path: torch.optim.AdamW, init_args: {betas: [0.9, 0.99]}}\n"
    change = "data: {class_path: torch.optim.SGD, init_args: {momentum: 0.9}}\n"
    check(tmp_path, model, data, change)
    check(
        tmp_path,
        model,
        data,
        pairs=[("data.momentum", "1"), ("data.class_path", "torch.optim.SGD")],
    )
    with pytest.raises(UserError, match=r"2\.yaml:1: unknown key data\.betas: SGD has no 'betas'"):
        check(tmp_path, model, data, change.replace("momentum", "betas"))
    with pytest.raises(UserError, match=r"1\.yaml:1: unknown key data\.momentum: AdamW has no"):
        check(tmp_path, model, data.replace("betas", "momentum"), change)
