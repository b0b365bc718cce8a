import errno
import json
import os
import resource
import subprocess
import sys

import pytest

from gmf_platform import __version__
from gmf_platform.cli import main as front


def test_help_answers_at_once_and_without_torch():
    code = (
        "import sys; from gmf_platform.cli.main import main; main(['--help']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'lightning', 'cv2', 'numpy')))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert all(verb in done.stdout for verb in front.VERBS)
    # Time on the processor, not on the wall: other tests run beside.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.8


def test_the_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "gmf_platform", "--version"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"{__version__}\n")


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_usage(gmf, words):
    result = gmf(*words)
    assert result.code == 0
    assert result.out.startswith("usage: python -m gmf_platform VERB")


def test_unknown_verb_names_the_nearest(gmf):
    result = gmf("trian")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: no verb 'trian'")
    assert "did you mean" not in result.err
    result = gmf("validat")
    assert result.code == 2
    assert "did you mean validate?" in result.err


def test_unknown_option_of_a_verb_without_config(gmf):
    result = gmf("sample-data", "ade20k", "there", "--trian", "3")
    assert result.code == 2
    assert "--trian" in result.err
    assert "sample-data --help" in result.err


def test_sample_data(gmf, tmp_path):
    result = gmf("sample-data", "ade20k", "there", "--train", 2, "--val", 1, "--size", 64)
    assert result.code == 0
    assert len(list((tmp_path / "there" / "images" / "training").iterdir())) == 2


def test_interrupt_is_a_failure(gmf, monkeypatch):
    def interrupted(verb, arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(front, "_run", interrupted)
    result = gmf("fit")
    assert (result.code, result.err) == (1, "interrupted\n")


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "runs/a/f cannot be written: No space left on device; make room there."),
        (errno.EDQUOT, "make room there, or have your quota raised."),
        (errno.EROFS, "Read-only file system; have it mounted for writing, or give another"),
        (errno.EACCES, "runs/a/f: Permission denied; have it opened to you, or give another"),
        (errno.ENOTDIR, "runs/a/f: Not a directory; a file is where a folder should be"),
        (errno.ENAMETOOLONG, "runs/a/f: File name too long; give a shorter name"),
    ],
)
def test_a_path_that_the_system_refuses(gmf, monkeypatch, number, said):
    def full(verb, arguments):
        raise OSError(number, os.strerror(number), "runs/a/f")

    monkeypatch.setattr(front, "_run", full)
    result = gmf("fit")
    assert result.code == 2
    assert said in result.err


def test_other_errors_of_the_system_keep_their_traceback(gmf, monkeypatch):
    def broken(verb, arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(front, "_run", broken)
    with pytest.raises(OSError, match="Input/output error"):
        gmf("fit")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--help"], ["fit", "--help"]])
def test_a_reader_that_has_gone_is_no_error(words, unbuffered):
    """As in ``--help | head``, whether Python writes at once or at its end."""
    to_read, to_write = os.pipe()
    os.close(to_read)
    done = subprocess.run(
        [sys.executable, "-m", "gmf_platform", *words],
        stdout=to_write,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        check=False,
    )
    os.close(to_write)
    assert done.stderr == b""


def test_another_broken_pipe_keeps_its_traceback():
    code = (
        "from gmf_platform.cli import main as front\n"
        "def broken(*_): raise BrokenPipeError('of a loading process')\n"
        "front._run = broken\n"
        "front.main(['fit'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("BrokenPipeError: of a loading process\n")


def test_a_defect_keeps_its_traceback(gmf, monkeypatch):
    def broken(verb, arguments):
        raise ZeroDivisionError

    monkeypatch.setattr(front, "_run", broken)
    with pytest.raises(ZeroDivisionError):
        gmf("fit")


@pytest.mark.parametrize("inside", ["import datamodules", "import gmf_platform, datamodules"])
def test_own_folder_called_datamodules_does_not_shadow_ours(tmp_path, inside):
    """``python -m`` and ``python -c`` put the current folder first on the path."""
    package = tmp_path / "datamodules"
    package.mkdir()
    (package / "__init__.py").write_text("MINE = True\n")
    code = f"{inside}; import json; print(json.dumps(datamodules.__file__))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    is_theirs = json.loads(done.stdout).startswith(str(tmp_path))
    assert is_theirs == ("gmf_platform" not in inside)  # alone, a user's own is what they mean
    verb = subprocess.run(
        [sys.executable, "-m", "gmf_platform", "sample-data", "ade20k", "there", "--train", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert verb.returncode == 0, verb.stderr
