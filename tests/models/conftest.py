"""Numbers of the original implementations, made once on random weights and inputs."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors import safe_open

FIXTURES = Path(__file__).parents[1] / "fixtures"


@dataclass(frozen=True)
class Reference:
    """Tensors by name, such as ``eval/logits``, and the settings they were made with."""

    tensors: dict
    settings: dict

    @classmethod
    def read(cls, name):
        with safe_open(FIXTURES / f"{name}.safetensors", "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return cls(tensors, file.metadata())

    def __getitem__(self, key):
        return self.tensors[key]

    def group(self, prefix):
        """The tensors of one group, without its name."""
        cut = {key.removeprefix(prefix): t for key, t in self.tensors.items()}
        return {key: t for key, t in cut.items() if key not in self.tensors}

    def error(self, key, value):
        """Distance of a tensor from the reference, relative to the latter."""
        return relative_error(value, self[key])

    def setting(self, key):
        return json.loads(self.settings[key])


def relative_error(value, expected):
    return float((value.detach() - expected.detach()).norm() / expected.detach().norm())


@pytest.fixture(name="relative_error")
def relative_error_fixture():
    return relative_error


@pytest.fixture
def read_reference():
    return Reference.read
