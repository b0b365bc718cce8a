from argparse import Namespace

import yaml

from gmf_platform.cli.arguments import Arguments
from gmf_platform.cli.config import with_origins
from gmf_platform.cli.sources import Sources


def shown(gmf, *words):
    result = gmf("config", "show", *words)
    assert result.code == 0, result.err
    return result.out


def test_what_is_shown_is_a_config(gmf, base, tmp_path):
    text = shown(gmf, *base, "--data.crop_size", "32")
    (tmp_path / "shown.yaml").write_text(text)
    assert shown(gmf, "--config", "shown.yaml") == text
    tree = yaml.safe_load(text)
    assert tree["data"]["init_args"]["crop_size"] == 32
    assert tree["trainer"]["max_steps"] == 6
    assert tree["model"]["init_args"]["norm"] == "sync"
    assert "seed" not in tree["data"]["init_args"]  # follows from seed_everything


def test_origins(gmf, base, overlay, tmp_path):
    (tmp_path / "here.yaml").write_text("data:\n  classes: [a, b, c]\n\nmodel:\n  compile: true\n")
    words = (*base, "--config", "here.yaml", "--data.crop_size", "32")
    text = shown(gmf, *words, "--origin")
    assert yaml.safe_load(text) == yaml.safe_load(shown(gmf, *words))
    origins = {}
    for line in text.splitlines():
        if "  # " in line:
            key, _, origin = line.partition("  # ")
            origins[key.strip()] = origin
    lines = overlay.read_text().splitlines()
    assert origins["crop_size: 32"] == "command line"
    assert origins["compile: true"] == "here.yaml:5"
    assert origins["classes:"] == "here.yaml:2"
    assert origins["max_steps: 6"] == f"{overlay}:{lines.index('  max_steps: 6') + 1}"
    assert origins["eval_batch_size: 1"] == "default"
    # The overlay's root has taken the place of seg_ade20k's interpolation.
    root = next(origin for key, origin in origins.items() if key.startswith("root: "))
    assert root.startswith(f"{overlay}:")


def test_an_interpolation_is_shown_beside_its_value(gmf):
    text = shown(gmf, "--config", "seg_ade20k", "--origin")
    line = next(line for line in text.splitlines() if line.startswith("init_from: "))
    assert "/groupmixformer_tiny.pth" in line
    assert "seg_ade20k.yaml:13: ${oc.env:GMF_PRETRAINED,pretrained}/groupmixformer_${mo" in line


def test_errors_are_those_of_other_verbs(gmf):
    result = gmf("config", "show", "--config", "seg_ade20k", "--data.crop_sizes", "3")
    assert result.code == 2
    assert "did you mean 'crop_size'?" in result.err
    assert gmf("config").code == 2
    assert gmf("config", "hide").code == 2


def test_the_comment_of_a_wrapped_text_is_behind_it(tmp_path):
    """YAML breaks long texts, and inside of one a comment would be a part of it."""
    tree = {"data": {"root": "a folder " * 20, "name": 'said "so" ' * 20, "lines": "a\nb\n"}}
    text = yaml.safe_dump(tree) + "model: |\n  one\n  two\n"
    said = with_origins(text, Sources(Arguments(Namespace(), [], [("data.root", "x")])))
    assert yaml.safe_load(said) == yaml.safe_load(text)
    assert said.count("  # ") == 4
