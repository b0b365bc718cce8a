"""docs/ablations.md: its example runs, and it names what there is."""

import re
import runpy

import pytest
import torch

from gmf_platform.cli.arguments import shipped_folder
from gmf_platform.models.backbones import GroupMixAttention

CONFIGS = shipped_folder("configs")
DOCS = CONFIGS.parent / "docs" / "ablations.md"


@pytest.fixture(scope="module")
def text():
    return DOCS.read_text()


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_example_runs_and_learns(text, tmp_path):
    (source,) = blocks(text, "python")
    torch.manual_seed(0)
    (tmp_path / "example.py").write_text(source)
    names = runpy.run_path(str(tmp_path / "example.py"))
    net, logits = names["net"], names["logits"]
    assert logits.shape == (8, 10)
    assert all(p.grad is not None for p in net.parameters())
    assert sum(isinstance(module, GroupMixAttention) for module in net.modules()) == 2

    images, labels = torch.randn(8, 1, 28, 28), torch.arange(8)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
    assert loss < 0.1


def test_commands_name_configs_that_are_there(text):
    named = re.findall(r"--config (\S+)", "".join(blocks(text, "bash")))
    assert {"seg_ade20k", "ablation/no_aggregators"} <= set(named)
    assert all((CONFIGS / f"{name}.yaml").is_file() for name in named)


def test_table_names_every_overlay(text):
    table = text.partition("| overlay |")[2].partition("\n\n")[0]
    overlays = {path.stem for path in (CONFIGS / "ablation").glob("*.yaml")}
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == overlays
