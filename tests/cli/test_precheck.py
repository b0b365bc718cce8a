import subprocess
import sys

import pytest

from gmf_platform.cli.arguments import VerbParser, parse_arguments, shipped_folder
from gmf_platform.cli.precheck import check_data
from gmf_platform.cli.sources import Sources
from gmf_platform.errors import UserError

MISSING = """\
import sys, time
begun = time.process_time()
from gmf_platform.cli.main import main
code = main(sys.argv[1:])
print(code, time.process_time() - begun, "torch" in sys.modules)
"""


def test_missing_root_answers_at_once_and_without_torch(tmp_path):
    words = ["fit", "--config", "seg_ade20k", "--data.root", "/no/such/folder"]
    done = subprocess.run(
        [sys.executable, "-c", MISSING, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    code, seconds, torch_loaded = done.stdout.split()
    assert (code, torch_loaded) == ("2", "False")
    assert float(seconds) < 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["fit", "validate", "test"])
def test_missing_root_says_what_to_do(gmf, overlay, verb):
    result = gmf(verb, "--config", "seg_ade20k", "--config", overlay, "--data.root", "/no/folder")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ADE20K: the folder /no/folder does not exist.")
    assert "ADEChallengeData2016.zip" in result.err
    assert "sample-data ade20k data/sample_ade20k" in result.err


def test_root_without_a_sub_folder(gmf, base, tmp_path):
    for name in ("images/training", "images/validation", "annotations/training"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "a.png").touch()
    result = gmf("fit", *base, "--data.root", "set")
    assert result.code == 2
    assert "the folder set has no files in annotations/validation" in result.err


def test_root_defaults_to_the_environment(gmf, monkeypatch):
    monkeypatch.setenv("GMF_DATA", "/sets")
    result = gmf("fit", "--config", "seg_ade20k")
    assert "the folder /sets/ADEChallengeData2016 does not exist" in result.err
    monkeypatch.delenv("GMF_DATA")
    result = gmf("fit", "--config", "seg_ade20k")
    assert "the folder data/ADEChallengeData2016 does not exist" in result.err


def test_missing_weights_say_where_to_get_them(gmf, sample_ade20k, monkeypatch):
    monkeypatch.delenv("GMF_PRETRAINED", raising=False)
    result = gmf("fit", "--config", "seg_ade20k", "--data.root", sample_ade20k)
    assert result.code == 2
    assert "init_from: no file pretrained/groupmixformer_tiny.pth" in result.err
    config = shipped_folder("configs") / "seg_ade20k.yaml"
    lines = config.read_text().splitlines()
    number = next(i for i, line in enumerate(lines, start=1) if line.startswith("init_from:"))
    assert f"({config}:{number})" in result.err
    assert "Model Zoo" in result.err
    assert "--init_from none" in result.err
    result = gmf(
        "fit", "--config", "seg_ade20k", "--data.root", sample_ade20k, "--init_from", "mine.pth"
    )
    assert "init_from: no file mine.pth (command line)" in result.err


def test_from_scratch_knowingly(gmf, base):
    result = gmf("fit", *base, "--init_from", "none", "--dry-run")
    assert result.code == 0, result.err


@pytest.mark.parametrize("verb", ["fit", "validate", "test"])
def test_missing_checkpoint_names_those_beside_it(gmf, base, tmp_path, verb):
    result = gmf(verb, *base, "--ckpt_path", "there/lst.ckpt")
    assert (result.code, result.err) == (2, "error: --ckpt_path: no file there/lst.ckpt\n")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "last.ckpt").touch()
    result = gmf(verb, *base, "--ckpt_path", "there/lst.ckpt")
    assert result.err.endswith("no file there/lst.ckpt; in there there are: last.ckpt\n")


def test_a_set_without_a_split_may_be_of_any_form(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set/cat").mkdir(parents=True)
    (tmp_path / "set/cat/1.jpg").touch()
    text = "data:\n  class_path: datamodules.ImageNet\n  init_args:\n    root: set\n"
    (tmp_path / "my.yaml").write_text(text)

    def check(*words):
        check_data(Sources(parse_arguments(VerbParser("fit", ""), ["--config", "my.yaml", *words])))

    with pytest.raises(UserError, match="the folder set has no files in train, val"):
        check()
    check("--data.val_fraction", "0.1")
    check("--data.val_list", "val.txt")
    with pytest.raises(UserError, match="the folder nowhere does not exist"):
        check("--data.val_fraction", "0.1", "--data.root", "nowhere")
