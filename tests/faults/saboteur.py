"""A callback that does harm where the environment says, and notes when each step was done.

``HARM`` is ``DEED RANKS PLACE STEP``, several of them with semicolons between: ``kill 0,1 training
7``. The places are ``training`` (before the step's forward pass), ``validation`` (before its second
batch), ``saving`` (before anything is written) and ``writing`` (a file is half on the disk).
"""

import os
import signal
import stat
import time
from pathlib import Path

import harmed
from lightning.pytorch import Callback

JOURNAL = Path("journal.txt")  # in the working directory: the run's folder may be full


def own_signal(name):
    return lambda trainer: os.kill(os.getpid(), getattr(signal, name))


def kill_worker(trainer):
    os.kill(trainer.train_dataloader._iterator._workers[0].pid, signal.SIGKILL)


def fill(trainer, *, spare=0):
    """Fill the disk of the run's folder, but for some bytes."""
    path = Path(trainer.default_root_dir).parent / "filler"
    disk = os.statvfs(path.parent)
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize - spare)


def make_read_only(trainer):
    refused = harmed.make_read_only(Path(trainer.default_root_dir).parent)
    assert not refused, refused


def break_loss(trainer):
    """Make what the backbone gives for this batch nothing that can be counted with."""
    backbone = trainer.lightning_module.model.get_submodule("backbone")

    def spoil(module, images, features):
        hook.remove()
        return [feature * float("nan") for feature in features]

    hook = backbone.register_forward_hook(spoil)


def data_file():
    return Path(os.environ["HARMED_FILE"])


DEEDS = {
    "kill": own_signal("SIGKILL"),
    "SIGTERM": own_signal("SIGTERM"),
    "SIGUSR1": own_signal("SIGUSR1"),
    "SIGINT": own_signal("SIGINT"),
    "sleep": lambda trainer: time.sleep(300),
    "nan": break_loss,
    "kill_worker": kill_worker,
    "fill": fill,
    "nearly_fill": lambda trainer: fill(trainer, spare=1 << 20),
    "make_read_only": make_read_only,
    "remove_file": lambda trainer: data_file().unlink(),
    "truncate_file": lambda trainer: os.truncate(data_file(), data_file().stat().st_size // 2),
    "replace_file": lambda trainer: data_file().write_text("<html>moved</html>"),
}


class Saboteur(Callback):
    def __init__(self):
        self.harms = [harm.split() for harm in os.environ.get("HARM", "").split(";") if harm]

    def due(self, place, trainer):
        """The deeds for here and now."""
        return [
            deed
            for deed, ranks, where, step in self.harms
            if (where, int(step)) == (place, trainer.global_step)
            and str(trainer.global_rank) in ranks.split(",")
        ]

    def act(self, place, trainer):
        for deed in self.due(place, trainer):
            note(deed)
            DEEDS[deed](trainer)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.act("training", trainer)

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 1:
            self.act("validation", trainer)

    def on_save_checkpoint(self, trainer, module, checkpoint):
        self.act("saving", trainer)
        if self.due("writing", trainer):
            os.fsync = lambda file: self.cut_off(trainer, file)

    def cut_off(self, trainer, file):
        """In place of forcing a file to the disk: half of it is all that ever gets there."""
        if stat.S_ISREG(os.fstat(file).st_mode):  # it may be open for reading alone, or a folder
            os.truncate(f"/proc/self/fd/{file}", os.fstat(file).st_size // 2)
        self.act("writing", trainer)

    def on_train_batch_end(self, trainer, *_):
        if trainer.is_global_zero:
            note(str(trainer.global_step))


def note(what):
    with JOURNAL.open("a") as file:
        file.write(f"{time.time()} {what}\n")
