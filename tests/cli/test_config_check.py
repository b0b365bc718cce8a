import argparse
import re

import pytest

from gmf_platform.cli.arguments import Arguments, find_config, shipped_folder
from gmf_platform.cli.config_check import LINKED, check_keys, checked, classes_of
from gmf_platform.cli.signatures import signature_of
from gmf_platform.cli.sources import Sources
from gmf_platform.errors import UserError

OURS = ("gmf_platform.", "datamodules.")


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


# What the source of the classes tells: key, value, what is said of it.
TOLD = [
    ("data.crop_size", "many", "expected int (1 or more), not 'many'"),
    ("data.crop_size", "null", "expected int (1 or more), not null"),
    ("data.crop_size", "1.5", "expected int (1 or more), not 1.5"),
    ("data.crop_size", "[3]", "expected int (1 or more), not [3]"),
    ("trainer.max_steps", "", "expected int (-1 or more), not null"),
    ("trainer.precision", "bf17", "bf16 or null, not 'bf17'; did you mean 'bf16'?"),
    ("model.backbone", "null", "expected a class (class_path: MODULE.CLASS), not null"),
    ("model.backbone.variant", "tinny", "or large, not 'tinny'; did you mean 'tiny'?"),
    ("model.norm", "synced", "expected sync, train or frozen, not 'synced'; did you mean 'sync'?"),
    ("model.layer_decay", "a lot", "expected float or null, not 'a lot'"),
    ("model.decode_head", "3", "expected a class (class_path: MODULE.CLASS), not 3"),
    ("model.backbone", "[a]", "expected a class (class_path: MODULE.CLASS), not ['a']"),
    ("trainer.strategy", "gmf_platform.distributed.FSDP", "is set by trainer.strategy.class_path"),
    ("seed_everything", "true", "expected int (0 to 4294967295), not True"),
    ("seed_everything", "-1", "expected int (0 to 4294967295), not -1"),
    ("data.crop_size", "0", "expected int (1 or more), not 0"),
    ("data.max_category_ratio", "3", "expected float (0 to 1), not 3"),
    ("data.scale", "[2048, -512]", "expected tuple[int, int] (1 or more), not [2048, -512]"),
    (
        "model.schedule.power",
        "-1e-1",
        "expected float (0 or more), not '-1e-1'",
    ),  # text in YAML 1.1
    ("model.schedule.min_factor", ".nan", "expected float (0 to 1), not nan"),
    ("data.crop_size", f"-1{'0' * 400}", "expected int (1 or more), not -10"),
    ("trainer.gradient_clip_val", "-1", "expected int, float or null (0 or more), not -1"),
    ("model.loss", "torch.nn.CrossEntropy", "in torch.nn; did you mean 'CrossEntropyLoss'?"),
    ("model.schedule", "gmf_platform.optim.Uncertaintyy", "'gmf_platform.optim.balancing.Uncer"),
    ("checkpoint", "3", "expected keys of checkpoint, e.g. every_n_steps: VALUE, not 3"),
    ("pictures", "null", "expected keys of pictures, e.g. count: VALUE, not null"),
    ("data", "datamodules.ADE20k", "no class 'ADE20k' in datamodules; did you mean 'ADE20K'?"),
    ("model.optimizer", "torch.optim.AdamWW", "in torch.optim; did you mean 'AdamW'?"),
    ("model.optimizer.class_path", "torch.optim.AdamWW", "; did you mean 'AdamW'?"),
    ("data.class_path", "datamodules.ADE20k", "in datamodules; did you mean 'ADE20K'?"),
    (
        "trainer.strategy.class_path",
        "gmf_platform.distributed.FSPD",
        "no class 'FSPD' in gmf_platform.distributed; did you mean 'FSDP'?",
    ),
    ("model.backbone.class_path", "gmf_platfrom.X", "did you mean 'gmf_platform'?)"),
    (
        "model.backbone.class_path",
        "gmf_platform.models.backbone.GroupMixFormer",
        "did you mean 'gmf_platform.models.backbones.GroupMixFormer'?",
    ),
    ("model.backbone.class_path", "GroupMixFormr", "backbones.GroupMixFormer'?\na class path is"),
    ("model.optimizer.class_path", "torch.optm.SGD", "no module 'optm' in torch; did you mean"),
]


def written(key, value):
    """A config that sets one key, in its second line."""
    for part in reversed(key.split(".")):
        value = f"{{{part}: {value}}}"
    return f"\n{value}\n"


def told(tmp_path, *texts, pairs=()):
    """What is said of overlays of seg_ade20k, and of overrides."""
    paths = [tmp_path / f"{number}.yaml" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    configs = [find_config("seg_ade20k"), *paths]
    with pytest.raises(UserError) as error:
        checked(Arguments(argparse.Namespace(), configs, list(pairs)))
    return str(error.value)


@pytest.mark.parametrize(("key", "value", "said"), TOLD)
def test_wrong_value(tmp_path, key, value, said):
    message = told(tmp_path, pairs=[(key, value)])
    assert message.startswith(f"command line: {key}: ")
    assert said in message
    assert len(message.splitlines()) <= 2
    message = told(tmp_path, written(key, value))
    assert message.startswith(f"{tmp_path}/0.yaml:2: {key}: ")
    assert said in message


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("data.nothing.at.all", "unknown key data.nothing: ADE20K has no 'nothing'"),
        ("model.init_arg.norm", "unknown key model.init_arg: SegmentationTask has no"),
        ("seed_everything.x", "seed_everything is one value, without keys"),
        ("data.crop_size.x", "data.crop_size"),
        ("model.decode_head.num_classes", "UPerNet has no 'num_classes'"),  # the data's
        ("data.seed", "data.seed follows from seed_everything; set that"),
        ("model.class_names", "model.class_names follows from the data's classes; set that"),
    ],
)
def test_key_that_leads_nowhere(tmp_path, key, said):
    assert said in told(tmp_path, pairs=[(key, "3")])
    message = told(tmp_path, written(key, "3"))
    assert message.startswith(f"{tmp_path}/0.yaml:2: ")


STOPPING = "lightning.pytorch.callbacks.EarlyStopping"


@pytest.mark.parametrize(
    ("item", "line", "said"),
    [
        (f"class_path: {STOPPING}\n    init_args:\n      moniter: x", 5, "did you mean 'monitor'?"),
        (f"class_path: {STOPPING}\n    init_args:\n      patience: x", 5, "expected int, not 'x'"),
    ],
)
def test_classes_in_a_list(tmp_path, item, line, said):
    message = told(tmp_path, f"trainer:\n  callbacks:\n  - {item}\n")
    assert message.startswith(f"{tmp_path}/0.yaml:{line}: ")
    assert said in message
    inside = f"[{{class_path: {STOPPING}, init_args: {{moniter: x}}}}]"
    for key in ("trainer.callbacks", "trainer.callbacks+"):
        message = told(tmp_path, pairs=[(key, inside)])
        assert message.startswith("command line: unknown key trainer.callbacks.0.moniter: ")


def test_settings_are_followed_into_dataclasses(tmp_path):
    (tmp_path / "over.yaml").write_text("model: {head: {rpn: {matcher: {positiv: 0.7}}}}")
    configs = [find_config("det_coco_mask_rcnn"), tmp_path / "over.yaml"]
    with pytest.raises(UserError, match="Matcher has no 'positiv'; did you mean 'positive'"):
        checked(Arguments(argparse.Namespace(), configs, []))
    key = "model.head.rpn.matcher.positive"
    with pytest.raises(UserError, match=rf"{key}: expected float \(0 to 1\), not 7"):
        checked(Arguments(argparse.Namespace(), configs[:1], [(key, "7")]))


def test_ranges_of_what_a_mapping_holds(tmp_path, modules):
    modules(
        "head_with_weights",
        """
from gmf_platform.ranges import PositiveFloat
class Head:
    def __init__(self, channels, num_classes, weights: dict[str, PositiveFloat]): ...
""",
    )
    head = ("model.decode_head.class_path", "head_with_weights.Head")
    key = "model.decode_head.weights"
    said = told(tmp_path, pairs=[head, (f"{key}.one", "0")])
    assert said == f"command line: {key}.one: expected a number, above 0, not 0"
    said = told(tmp_path, pairs=[head, (key, "{one: 1, two: -1}")])
    assert said.startswith(f"command line: {key}: expected dict[str, float] (above 0), not ")


def test_every_number_has_a_range():
    """But for these, of which any will do, or which are checked as a whole."""
    free = {"split_seed", "index", "allowed_border", "in_channels", "num_classes"}
    free |= {"single_task", "decay", "weights", "alpha", "layer_decay", "lr_factors"}
    for path in sorted(shipped_folder("configs").glob("*.yaml")):
        signatures = classes_of(Sources(Arguments(argparse.Namespace(), [path], []))).values()
        unseen = [s for s in signatures if s is not None and s.path.startswith(OURS)]
        assert unseen
        while unseen:
            for parameter in unseen.pop().parameters.values():
                unseen += [signature_of(parameter.settings)] if parameter.settings else []
                is_number = any(re.search("int|float", kind) for kind in parameter.types)
                if is_number and f"model.{parameter.name}" not in LINKED:
                    assert parameter.range or parameter.name in free, parameter


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.schedule.power", "1e-1"),  # a text to YAML 1.1, as the next
        ("model.decode_head.dropout", "1"),
        ("model.decode_head.dropout", "0.0"),
        ("data.num_workers", "null"),
        ("trainer.max_epochs", "-1"),
        ("model.optimizer.lr", "1.5e4"),
        ("model.schedule", "null"),
        ("model.lr_factors", "{backbone: 0.1}"),
        ("model.lr_factors.backbone", "0.1"),
        ("model.backbone.depths", "[1, 1, 1, 1]"),
        ("trainer.devices", "[0, 1]"),
        ("trainer.strategy", "ddp"),
        ("trainer.precision", "32"),
        ("trainer.gradient_clip_val", "1"),
        ("data.crop_size", "${data.init_args.scale}"),
        ("model.loss", "gmf_platform.models.losses.CrossEntropy"),
        ("model.optimizer", "SGD"),
    ],
)
def test_what_is_right_or_doubtful_passes(key, value):
    checked(Arguments(argparse.Namespace(), [find_config("seg_ade20k")], [(key, value)]))


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (
            "model.tasks.seg.decode_head.chanels",
            "UPerNet has no 'chanels'; did you mean 'channels'",
        ),
        ("data.tasks.seg.crop_sizes", "ADE20K has no 'crop_sizes'; did you mean 'crop_size'"),
    ],
)
def test_keys_of_joint_tasks(key, said):
    with pytest.raises(UserError, match=f"command line: unknown key {key}: {said}"):
        checked(Arguments(argparse.Namespace(), [find_config("multitask")], [(key, "3")]))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model.tasks.seg.optimizer.lr", "3", "is one for all tasks: set model.optimizer"),
        ("data.tasks.sg", "null", "there is no task sg; did you mean 'seg'?"),
    ],
)
def test_what_joint_tasks_do_not_have(key, value, said):
    with pytest.raises(UserError) as error:
        checked(Arguments(argparse.Namespace(), [find_config("multitask")], [(key, value)]))
    assert str(error.value).startswith("command line: ")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("lr", "the config has no 'lr'; did you mean model.optimizer.lr?"),
        ("epochs", "did you mean trainer.max_epochs or "),
        ("resume", "the config has no 'resume'. It has: average, "),
    ],
)
def test_short_names_of_inner_keys(tmp_path, key, said):
    assert said in told(tmp_path, pairs=[(key, "3")])


@pytest.mark.parametrize("key", ["model.tasks.seg", "data.tasks.seg", "model.single_task"])
def test_joint_tasks_may_be_null(key):
    checked(Arguments(argparse.Namespace(), [find_config("multitask")], [(key, "null")]))


def test_every_shipped_config_passes():
    tasks = {"cls": "cls_imagenet", "det": "det_coco_mask_rcnn"}
    for path in sorted(shipped_folder("configs").rglob("*.yaml")):
        text = path.read_text()
        is_whole = "\n  class_path: gmf_platform.tasks" in text
        joint = "multitask" if "  tasks:" in text else "seg_ade20k"
        task = tasks.get(path.stem.partition("_")[0], joint)
        files = [path] if is_whole else [find_config(task), path]
        checked(Arguments(argparse.Namespace(), files, []))


# What only the parser knows, in one line all the same.
@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("data.eval_ratios", "[[0.5, 1]]", "data.eval_ratios: expected float, not '[0.5, 1"),
        ("model.optimizer.betas", "[0.9]", "a tuple with 2 elements. Got value: [0.9] (torch.op"),
        ("data.scale", "[1,2,3]", "Expected a tuple with 2 elements. Got value: [1, 2, 3]"),
        ("model.optimizer.lr", "fast", "expected float, not 'fast'"),
        (
            "model.schedule.class_path",
            "gmf_platform.models.heads.UPerNet",
            "model.schedule: expected a class derived from Schedule, not gmf_platform.models.heads",
        ),
        (
            "model.optimizer.class_path",
            "torch.nn.Linear",
            "model.optimizer: expected a class derived from Optimizer, not torch.nn.Linear",
        ),
        ("model.class_path", "gmf_platform.tasks.DetectionTask", "DetectionTask needs head"),
        (
            "model.loss.weight",
            "x",
            "model.loss: 'weight' is no key here: model.loss.class_path names no class",
        ),
        ("trainer.strategy.nothing", "1", "trainer.strategy: expected str or a class"),
        ("trainer.devices", "many", "trainer.devices: "),
    ],
)
def test_wrong_value_by_the_parser(gmf, base, tmp_path, key, value, said):
    result = gmf("info", *base, f"--{key}", value)
    assert result.code == 2
    assert said in result.err
    assert len(result.err.splitlines()) <= 2
    (tmp_path / "over.yaml").write_text(written(key, value))
    result = gmf("info", *base, "--config", "over.yaml")
    assert result.code == 2
    assert said in result.err


def test_class_of_another_kind(gmf, base):
    result = gmf("info", *base, "--model.backbone.class_path", "gmf_platform.models.heads.UPerNet")
    assert result.code == 2
    assert (
        "model.backbone: gmf_platform.models.heads.UPerNet needs in_channels, num_c" in result.err
    )


def test_constructor_refuses_in_its_own_words(gmf, base):
    result = gmf("fit", *base, "--data.classes", "[one]")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: command line: data.classes: 1 classes")
    result = gmf("info", *base, "--model.backbone.depths", "[1,1]")
    assert result.code == 2
    assert "one number for each stage" in result.err


def test_trainer_refuses_in_its_own_words(gmf, base):
    result = gmf("info", *base, "--trainer.accelerator", "abacus")
    assert result.code == 2
    assert result.err.startswith("error: trainer.accelerator: ")
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
