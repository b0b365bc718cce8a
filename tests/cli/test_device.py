import os
import platform
import subprocess
import sys

import pytest
import torch

from gmf_platform.cli import device
from gmf_platform.cluster import surroundings
from gmf_platform.errors import UserError

DRIVER = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n"
    "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n"
)
OPEN_DRIVER = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\n"
    "GCC version:  gcc version 11.4.0\n"
)


@pytest.fixture
def unusable(monkeypatch, tmp_path):
    """A machine with a driver that this torch cannot use."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(surroundings, "_DRIVER", tmp_path / "version")
    monkeypatch.setattr(device, "_DEVICES", tmp_path)
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "version").write_text(DRIVER)
    return tmp_path / "version"


@pytest.mark.parametrize(
    ("text", "number"), [(DRIVER, "535.183.01"), (OPEN_DRIVER, "570.86.15"), ("odd", "unknown")]
)
def test_unusable_device_is_said(unusable, text, number):
    unusable.write_text(text)
    with pytest.raises(UserError) as error:
        device.check_device("auto")
    said = str(error.value)
    assert f"(driver {number})" in said
    assert torch.__version__ in said
    assert "--trainer.accelerator cpu" in said
    assert "docs/installation.md" in said


@pytest.mark.parametrize(("cuda", "build"), [("13.0", "CUDA 13.0"), (None, "CPU only")])
def test_the_build_is_said(unusable, monkeypatch, cuda, build):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(UserError, match=build):
        device.check_device("gpu")


def test_fit_refuses(unusable, gmf, base):
    result = gmf("fit", *base)
    assert result.code == 2
    assert result.err.startswith("error: an NVIDIA device is here (driver 535.183.01)")
    result = gmf("fit", *base, "--trainer.accelerator", "cpu", "--dry-run")
    assert result.code == 0, result.err


def test_the_cpu_is_a_decision(unusable):
    device.check_device("cpu")


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_hidden_devices_are_a_decision(unusable, monkeypatch, hidden):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    device.check_device("auto")


def test_a_container_without_a_device(unusable, tmp_path):
    (tmp_path / "nvidia0").unlink()
    device.check_device("auto")


def test_a_machine_without_driver(unusable):
    unusable.unlink()
    device.check_device("auto")


def test_a_device_that_works(unusable, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    device.check_device("auto")


GROWTH = """
import ctypes, sys, torch
from gmf_platform.cli.device import prepare_device

if sys.argv[1] == "kept":
    prepare_device("cpu")
end_of_heap = ctypes.CDLL(None).sbrk
end_of_heap.restype = ctypes.c_void_p
before = end_of_heap(0)
for _ in range(3):
    tensors = [torch.ones(10_000_000) for _ in range(4)]
    del tensors
print(end_of_heap(0) - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_freed_memory_is_kept_on_a_cpu_unless_the_user_has_settings():
    def kept_bytes(what, **settings):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
        command = [sys.executable, "-c", GROWTH, what]
        env = environment | {"CUDA_VISIBLE_DEVICES": ""} | settings
        return int(subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE).stdout)

    assert kept_bytes("kept") >= 160e6  # of four tensors
    assert kept_bytes("given back") < 120e6
    assert kept_bytes("kept", MALLOC_TRIM_THRESHOLD_="131072") < 120e6
