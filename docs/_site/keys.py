"""The page of all keys, made from the signatures and docstrings of the classes that configs name."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gmf_platform.cli.config_check import CALLBACKS, LINKED
from gmf_platform.cli.signatures import Parameter, Signature, read_signature, signature_of

_HEAD = """# Keys of a config

Every key that a config can set, made from the source of the classes when this site is built. The
same is told, for the classes that one config names and with its values, by

```bash
python -m gmf_platform fit --config seg_ade20k --help
```

A class is named by its path, and its arguments follow; on the command line and in an overlay the
words `class_path` and `init_args` can be left out where the class stays the same:

```yaml
model:
  decode_head:
    class_path: gmf_platform.models.heads.UPerNet
    init_args: {channels: 256}
```
<!-- not run: nothing but a piece of a command line -->
```bash
--model.decode_head.channels 256
```

Classes [of your own](../tutorials/own_code.md) stand in the same places.

## The top

| key | what it is |
|---|---|
| `seed_everything` | seed of the order, augmentation and initial weights |
| `init_from` | [weights](../weights.md) to begin with: a file, or `none` |
| `model` | the task and what it is made of, below |
| `data` | the data set and its transforms, below |
| `trainer` | [Lightning's Trainer](https://lightning.ai/docs/pytorch/stable/common/trainer.html#trainer-class-api); a step is an optimiser step |
| CALLBACKS | the callbacks that each run has, below |
"""

_TASKS = "gmf_platform.tasks"
_HEADS = "gmf_platform.models.heads"
_LOSSES = "gmf_platform.models.losses"
_SEGMENTATION = (f"{_TASKS}.SegmentationTask", "decode_head")
_BACKBONES = "gmf_platform.models.backbones"
_BALANCING = "gmf_platform.optim.balancing"


@dataclass(frozen=True)
class Section:
    """Classes that stand in one place of a config.

    Attributes:
        title: of the section.
        key: that names one of the classes.
        paths: of the classes.
        slot: class and parameter that takes them, where the code calls them with arguments of its
            own, which no config gives.
    """

    title: str
    key: str
    paths: tuple[str, ...]
    slot: tuple[str, str] | None = None


def _in(package: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{package}.{name}" for name in names)


SECTIONS = (
    Section(
        "Tasks",
        "model",
        _in(_TASKS, "ClassificationTask", "DetectionTask", "SegmentationTask", "MultiTask"),
    ),
    Section("Backbones", "model.backbone", _in(_BACKBONES, "GroupMixFormer", "TimmBackbone")),
    Section(
        "Heads of classification",
        "model.head",
        _in(_HEADS, "ClassificationHead"),
        (f"{_TASKS}.ClassificationTask", "head"),
    ),
    Section(
        "Heads of detection",
        "model.head",
        _in(_HEADS, "RetinaNet", "FasterRCNN", "MaskRCNN", "CascadeMaskRCNN"),
        (f"{_TASKS}.DetectionTask", "head"),
    ),
    Section(
        "Heads of segmentation",
        "model.decode_head, model.auxiliary_head",
        _in(_HEADS, "UPerNet", "SemanticFPN", "FCNHead"),
        _SEGMENTATION,
    ),
    Section(
        "Losses",
        "model.loss",
        _in(
            _LOSSES,
            "CrossEntropy",
            "OhemCrossEntropy",
            "Focal",
            "Dice",
            "Sum",
            "SoftTargetCrossEntropy",
        ),
    ),
    Section(
        "Augmentation of batches",
        "model.batch_augment",
        _in("gmf_platform.models.batch_augment", "BatchAugment"),
        (f"{_TASKS}.ClassificationTask", "batch_augment"),
    ),
    Section(
        "Schedules",
        "model.schedule",
        _in("gmf_platform.optim", "Polynomial", "MultiStep", "Cosine"),
    ),
    Section(
        "Ways to predict",
        "model.inference",
        _in(
            "gmf_platform.evaluation",
            "WholeImage",
            "SlidingWindow",
            "TestTimeAugmentation",
            "DetectionTestTimeAugmentation",
        ),
    ),
    Section(
        "Balancing of tasks",
        "model.balancing",
        _in(_BALANCING, "FixedWeights", "Uncertainty", "PCGrad"),
    ),
    Section(
        "Data",
        "data",
        _in("datamodules", "ImageNet", "COCO", "ADE20K", "SegmentationFiles", "MultiTask"),
    ),
    Section(
        "Turns of tasks",
        "data.turns",
        _in("gmf_platform.distributed.turns", "RoundRobin", "Ratios", "BySize"),
        ("datamodules.MultiTask", "turns"),
    ),
    Section(
        "Strategies",
        "trainer.strategy",
        _in("gmf_platform.distributed", "DDP", "FSDP", "ZeRO"),
    ),
    *(Section(key.capitalize(), key, (path,)) for key, path in CALLBACKS.items()),
)


def keys_page() -> str:
    """The page's markdown."""
    head = _HEAD.replace("CALLBACKS", ", ".join(f"`{key}`" for key in CALLBACKS))
    return "\n".join([head, *(line for section in SECTIONS for line in _section(section))]) + "\n"


def _section(section: Section) -> Iterator[str]:
    passed = 0
    if section.slot is not None:
        passed = _signature(section.slot[0]).parameters[section.slot[1]].passed
    keys = ", ".join(f"`{key}`" for key in section.key.split(", "))
    yield from ["", f"## {section.title}", "", f"Set by {keys}.", ""]
    for path in section.paths:
        signature = _signature(path)
        if len(section.paths) > 1:
            yield from [f"### {path.rpartition('.')[2]}", ""]
        yield from [f"`{path}`: {signature.summary}", ""]
        rows = list(_rows(signature, passed=passed, key=section.key))
        if rows:
            yield from ["| key | takes | default | |", "|---|---|---|---|", *rows, ""]


def _signature(path: str) -> Signature:
    signature = read_signature(path)
    assert signature is not None, f"no class {path}"
    return signature


def _rows(
    signature: Signature,
    *,
    passed: int = 0,
    key: str = "",
    start: str = "",
    given: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[str]:
    """A row for each parameter, those of its settings in place of one that has keys of its own."""
    for parameter in list(signature.parameters.values())[passed:]:
        name = start + parameter.name
        if f"{key}.{name}" in LINKED:
            continue
        if parameter.settings is None:
            yield _row(name, parameter, given.get(parameter.name, parameter.default))
        else:
            inner = {k.partition(".")[2]: v for k, v in given.items() if k.startswith(f"{name}.")}
            defaults = dict(parameter.given) | inner
            yield from _rows(signature_of(parameter.settings), start=f"{name}.", given=defaults)


def _row(name: str, parameter: Parameter, default: str | None) -> str:
    takes = ", ".join("a class" if kind == "class" else kind for kind in parameter.types)
    if parameter.range is not None:
        takes += f" ({parameter.range})"
    value = "must be given" if default is None else f"`{default}`"
    takes, words = (
        text.replace("|", "\\|").replace("[", "\\[") for text in (takes, parameter.words)
    )
    return f"| `{name}` | {takes} | {value} | {words} |"
