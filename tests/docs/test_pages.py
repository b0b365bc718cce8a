"""What pages name is there: keys, messages, files, classes."""

import ast
import re
import sys
from functools import cache

import pytest
import yaml
from blocks import PAGES, ROOT
from reader import CONFIGS, leaves

from gmf_platform.cli.config_check import TOP_LEVEL

sys.path.append(str(ROOT / "docs" / "_site"))


def page(name):
    return (ROOT / "docs" / name).read_text()


def rendered(node):
    """A text in the source, with ``...`` for what it is filled with; None for another node."""
    match node:
        case ast.Constant(str() as text):
            return text
        case ast.JoinedStr(parts):
            return "".join(x.value if isinstance(x, ast.Constant) else "..." for x in parts)
    return None


@cache
def texts():
    """All texts in our sources."""
    files = [*(ROOT / "gmf_platform").rglob("*.py"), *(ROOT / "datamodules").rglob("*.py")]
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text())))
    return [text for node in nodes if (text := rendered(node)) is not None]


def quoted_messages():
    table = re.findall(r"^\| `(.+?)` \|", page("troubleshooting.md"), re.MULTILINE)
    assert len(table) > 20
    return table


@pytest.mark.parametrize("message", quoted_messages())
def test_messages_are_in_the_source(message):
    """Pieces between the gaps stand in one text of the source, in that order."""
    pieces = [piece for piece in message.split("...") if piece.strip(" .:")]
    pattern = re.compile(".*".join(map(re.escape, pieces)), re.DOTALL)
    assert any(pattern.search(text) for text in texts()), message


@pytest.fixture(scope="module")
def keys(call, tmp_path_factory):
    """All keys that shipped configs have, resolved, and the keys above them."""
    folder = tmp_path_factory.mktemp("keys")
    (folder / "files.yaml").write_text(
        "data: {class_path: datamodules.SegmentationFiles, init_args: {images: a, masks: b, "
        "zero_is: class, ignore_value: null, classes: [a, b], val_fraction: 0.5}}"
    )
    tables = [
        ["cls_imagenet"],
        ["det_coco_mask_rcnn"],
        ["seg_ade20k"],
        ["seg_ade20k", "files.yaml"],
    ]
    found = set()
    for names in tables:
        words = [word for name in names for word in ("--config", name)]
        result = call("config", "show", *words, cwd=folder)
        assert result.code == 0, result.err
        for key, _ in leaves(yaml.safe_load(result.out)):
            parts = key.removesuffix(".class_path").split(".")
            found |= {".".join(parts[: n + 1]) for n in range(len(parts))}
    return found


@pytest.mark.parametrize(
    "name", ["from_openmmlab.md", "troubleshooting.md", "tutorials/own_code.md"]
)
def test_keys_are_those_of_shipped_configs(name, keys):
    words = re.findall(r"`(?:--)?([a-z_]+(?:\.[a-z_0-9]+)*)[^`]*`", page(name))
    ours = {word for word in words if word.split(".")[0] in TOP_LEVEL and "." in word}
    theirs = {"data.tasks"}
    if name == "from_openmmlab.md":  # the first column of its tables is about other configs
        rows = [row.split(" | ", 1)[1] for row in page(name).splitlines() if row.startswith("| `")]
        words = re.findall(r"`([a-z_]+(?:\.[a-z_0-9]+)*)`", "\n".join(rows))
        ours = {word for word in words if word.split(".")[0] in TOP_LEVEL}
        assert len(ours) > 60
    assert ours - theirs <= keys


@pytest.mark.parametrize("name", PAGES)
def test_configs_and_classes_in_the_text(name):
    text = (ROOT / name).read_text()
    named = re.findall(r"`((?:backbone|schedule|strategy|test|device|demo|ablation)/\w+)`", text)
    assert all((CONFIGS / f"{one}.yaml").is_file() for one in named), named
    for module, one in re.findall(r"`((?:gmf_platform|datamodules)(?:\.\w+)*)\.([A-Z]\w+)`", text):
        assert one in sources(module), f"{module}.{one}"


@cache
def sources(module):
    folder = ROOT / module.replace(".", "/")
    return (folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")).read_text()


def test_links_of_pages_outside_the_site():
    """Those inside it are mkdocs' to check."""
    for name in ("README.md", "slurm/README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        folder = (ROOT / name).parent
        links = re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", (ROOT / name).read_text())
        assert [link for link in links if not (folder / link).exists()] == []


def test_pictures_are_small():
    pictures = list((ROOT / "docs" / "images").iterdir())
    assert pictures
    assert all(path.stat().st_size <= 60_000 for path in pictures)


def test_the_page_of_keys_has_every_class_that_shipped_configs_name():
    from keys import keys_page

    text = keys_page()
    named = {
        path
        for file in CONFIGS.rglob("*.yaml")
        for path in re.findall(r"class_path: ((?:gmf_platform|datamodules)\.\S+)", file.read_text())
    }
    assert {path for path in named if f"`{path}`: " not in text} == set()
    assert "| `crop_size` | int (1 or more) | `512` | side of the training crops, pixels. |" in text
    assert (
        r"| `rpn.anchors.strides` | tuple\[int, ...] (1 or more) | `[4, 8, 16, 32, 64]` |" in text
    )
    assert "class_names" not in text
