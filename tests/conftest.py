"""What all tests share: small real data, a drawn sample, the command line, several processes."""

import logging
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import time
import traceback
import warnings
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from datamodules.sample_data import write_sample
from gmf_platform.cli.main import main
from gmf_platform.cluster import signals

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else it asks the network when imported
# Threads that wait for each other spin: beside other tests two are ten times slower than one.
torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def _written_modules(tmp_path_factory):
    """Forget the modules that a file of tests wrote: another file's may have their names."""
    yield
    written = tmp_path_factory.getbasetemp()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is not None and Path(file).is_relative_to(written):
            del sys.modules[name]


@pytest.fixture(scope="session")
def real_data():
    """Find a small real data set by its folder's name under GMF_DATA, or skip the test."""

    def find(name):
        home = os.environ.get("GMF_DATA")
        if home is None:
            pytest.skip(f"needs {name}: set GMF_DATA to the folder above it")
        if not Path(home, name).is_dir():
            pytest.skip(f"needs {name}, which is not under GMF_DATA={home}")
        return Path(home, name)

    return find


@pytest.fixture(scope="session")
def sample_ade20k(tmp_path_factory):
    """A drawn set in ADE20K's layout, 12 and 6 images of 96 x 96; not to be written to."""
    root = tmp_path_factory.mktemp("sample") / "ade20k"
    write_sample("ade20k", root, train=12, val=6, size=96, seed=0)
    return root


@pytest.fixture(scope="session")
def sample_coco(tmp_path_factory):
    """A drawn set in COCO's layout, 12 and 6 images of 96 x 96; not to be written to."""
    root = tmp_path_factory.mktemp("sample") / "coco"
    write_sample("coco", root, train=12, val=6, size=96, seed=0)
    return root


@pytest.fixture(scope="session")
def sample_imagenet(tmp_path_factory):
    """A drawn set in ImageNet's layout, 16 and 10 images of 5 classes; not to be written to."""
    root = tmp_path_factory.mktemp("sample") / "imagenet"
    write_sample("imagenet", root, train=16, val=10, size=96, seed=0)
    return root


@pytest.fixture(scope="session")
def call():
    """Run a command line in this process: ``call("info", "--config", ..., cwd=folder)``."""
    return _call


@pytest.fixture
def gmf(tmp_path):
    """The same in the test's own folder: ``gmf("info", "--config", ...)``."""
    return lambda *words, cwd=tmp_path: _call(*words, cwd=cwd)


@dataclass(frozen=True)
class _Result:
    """What a command line gave."""

    code: int
    out: str
    err: str


@contextmanager
def _undisturbed():
    """Put back what a verb sets for its whole process."""
    logger = logging.getLogger("gmf_platform")
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    handlers = {number: signal.getsignal(number) for number in numbers}
    environment, precision = dict(os.environ), torch.get_float32_matmul_precision()
    before = logger.handlers[:], logger.level, logger.propagate
    logger.handlers = []
    try:
        with warnings.catch_warnings():
            yield
    finally:
        for handler in logger.handlers:
            handler.close()
        logger.handlers, logger.level, logger.propagate = before
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signals._received.clear()
        signals._installed = False
        os.environ.clear()
        os.environ.update(environment)
        torch.set_float32_matmul_precision(precision)


def _call(*words, cwd):
    """Run ``python -m gmf_platform WORDS`` in this process and in a folder."""
    out, err = StringIO(), StringIO()
    with _undisturbed(), chdir(cwd), redirect_stdout(out), redirect_stderr(err):
        try:
            code = main([str(word) for word in words])
        except SystemExit as leave:  # argparse's --help, and a run that was asked to stop
            code = leave.code
    return _Result(int(code or 0), out.getvalue(), err.getvalue())


@pytest.fixture
def run_processes(tmp_path_factory):
    """Call ``fn(rank)`` in forked processes that gloo connects; gives the results by rank."""

    def run(fn, world_size):
        folder = tmp_path_factory.mktemp("processes")
        context = multiprocessing.get_context("fork")
        arguments = [(fn, rank, world_size, folder) for rank in range(world_size)]
        processes = [context.Process(target=_rank_main, args=args) for args in arguments]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout=200)
            if process.is_alive():
                process.kill()
                process.join()
        assert [process.exitcode for process in processes] == [0] * world_size
        return [pickle.loads((folder / str(rank)).read_bytes()) for rank in range(world_size)]

    return run


def _rank_main(fn, rank, world_size, folder):
    torch.set_num_threads(1)  # the parent's thread pool does not survive the fork
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    (folder / str(rank)).write_bytes(pickle.dumps(fn(rank)))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="session")
def call_processes(tmp_path_factory):
    """Run one command line in several forked processes, as torchrun would start them.

    ``call_processes(2, "fit", "--config", ..., cwd=folder)`` gives their results by rank; None for
    one that was killed.
    """

    def run(world_size, *words, cwd, timeout=300):
        folder = tmp_path_factory.mktemp("ranks")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("fork")
        arguments = [(words, cwd, rank, world_size, port, folder) for rank in range(world_size)]
        processes = [context.Process(target=_torchrun_main, args=args) for args in arguments]
        for process in processes:
            process.start()
        end = time.monotonic() + timeout
        for process in processes:
            process.join(timeout=max(0, end - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        results = [folder / str(rank) for rank in range(world_size)]
        return [_Result(*pickle.loads(p.read_bytes())) if p.exists() else None for p in results]

    return run


def _torchrun_main(words, cwd, rank, world_size, port, folder):
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "forked",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    try:
        result = _call(*words, cwd=cwd)
    except BaseException:  # noqa: BLE001 - what would end a process of its own with a traceback
        result = _Result(1, "", traceback.format_exc())
    (folder / str(rank)).write_bytes(pickle.dumps((result.code, result.out, result.err)))
    os._exit(0)  # what the parent's fixtures registered for its own end is not ours to run
