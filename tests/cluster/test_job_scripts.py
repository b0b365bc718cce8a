"""The job scripts, as far as they can be judged without a cluster."""

import shutil
import subprocess
from pathlib import Path

import pytest

import gmf_platform
from gmf_platform.errors import ExitCode

CODE = Path(gmf_platform.__file__).parents[1]
SCRIPTS = sorted((CODE / "slurm").glob("*.sh"))


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_shellcheck():
    files = [*SCRIPTS, CODE / "slurm" / "site.env", CODE / ".ci" / "run"]
    line = ["shellcheck", "--external-sources", *map(str, files)]
    done = subprocess.run(line, cwd=CODE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_exit_codes_are_pythons():
    text = (CODE / "slurm" / "common.sh").read_text()
    codes = f"SUCCESS={ExitCode.DONE:d} WRONG_INPUT={ExitCode.WRONG_INPUT:d} "
    assert codes + f"REQUEUE={ExitCode.REQUEUE:d}" in text


@pytest.mark.parametrize(
    "script", [p for p in SCRIPTS if p.name != "common.sh"], ids=lambda p: p.name
)
def test_one_task_for_each_gpu(script):
    """And output goes to a file whose folder is there: Slurm runs no job whose output it cannot open."""
    options = dict(
        line.removeprefix("#SBATCH --").split("=", 1)
        for line in script.read_text().splitlines()
        if line.startswith("#SBATCH --") and "=" in line
    )
    assert options["gpus-per-node"] == options["ntasks-per-node"]
    assert "/" not in options["output"]


def settings(environment, home):
    script = 'set -u; source "$1"; echo "$GMF_DATA|$RUN_WITH|$GLOO_SOCKET_IFNAME"'
    done = subprocess.run(
        ["bash", "-c", script, "-", str(CODE / "slurm" / "site.env")],
        env={"PATH": "/usr/bin:/bin", **environment},
        cwd=home,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_what_is_set_on_submission_wins(tmp_path):
    assert settings({}, tmp_path) == f"{tmp_path}/data||"
    chosen = {"GMF_DATA": "/d", "RUN_WITH": "path", "NCCL_SOCKET_IFNAME": "ib0"}
    assert settings(chosen, tmp_path) == "/d|path|ib0"


def test_the_sweep_names_configs_that_are_there(call, tmp_path):
    text = (CODE / "configs" / "sweeps" / "backbones.txt").read_text()
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    names = [line[line.index("--name") + 1] for line in lines]
    assert len(set(names)) == len(lines) == 5
    for line in lines:
        result = call("info", *line[:4], "--init_from", "none", cwd=tmp_path)
        assert result.code == 0, result.err
