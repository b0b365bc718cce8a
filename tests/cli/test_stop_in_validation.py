"""Several processes of which one is asked to stop give up a validation together, and do it again."""

import pytest
import yaml

STOPPER = '''
"""A process is sent a signal before a batch of the validation at step 3, as RANK:BATCH."""

import os
import signal

from lightning.pytorch import Callback

from gmf_platform.callbacks import checkpoint

checkpoint._AGREE_EVERY = 1


class Stopper(Callback):
    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        print("rank", trainer.global_rank, "step", trainer.global_step, "batch", batch_idx)
        here = trainer.global_step == 3 and f"{trainer.global_rank}:{batch_idx}"
        if here and here == os.environ.get("STOP"):
            os.kill(os.getpid(), signal.SIGUSR1)
'''


@pytest.fixture
def line(base, modules, tmp_path):
    modules("interrupted", STOPPER)
    content = {
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 4,
            "callbacks": [{"class_path": "interrupted.Stopper"}],
        }
    }
    (tmp_path / "interrupted.yaml").write_text(yaml.safe_dump(content))
    return ("fit", *base, "--config", tmp_path / "interrupted.yaml", "--name", "run")


@pytest.mark.parametrize(
    ("strategy", "size", "stop", "batches"),
    [
        ("ddp", 1, "1:1", [2, 2]),  # of three that each process has
        ("ddp", 2, "0:1", [2, 1]),  # the first process's second one, and the other has one
        pytest.param("fsdp", 1, "1:1", [2, 2], marks=pytest.mark.slow),
        pytest.param("deepspeed_zero3", 1, "1:1", [2, 2], marks=pytest.mark.slow),
    ],
)
def test_stopped_in_validation(
    line, call_processes, monkeypatch, tmp_path, strategy, size, stop, batches
):
    words = (*line, "--config", f"strategy/{strategy}", "--data.eval_batch_size", size)
    monkeypatch.setenv("STOP", stop)
    stopped = call_processes(2, *words, cwd=tmp_path)
    assert [result.code for result in stopped] == [75, 75], stopped[0].err
    name = "SIGUSR1" if stop.startswith("0") else "SIGTERM"  # for another process's
    assert f"{name}: saved at step 3" in stopped[0].out
    assert "validation at step 3" not in stopped[0].out
    assert [result.out.count("step 3 batch") for result in stopped] == batches

    monkeypatch.delenv("STOP")
    resumed = call_processes(2, *words, cwd=tmp_path)
    assert [result.code for result in resumed] == [0, 0], resumed[0].err
    assert "going on at step 3 of 4" in resumed[0].out
    assert "validation at step 3" in resumed[0].out
    assert "validation at step 4" in resumed[0].out
