import os
import signal
import subprocess
import sys

import pytest

from gmf_platform.cluster import signals

NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@pytest.fixture(autouse=True)
def restored():
    before = {number: signal.getsignal(number) for number in NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    signals._received.clear()
    signals._installed = False


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_is_noted_and_nothing_else(number):
    signals.install_handlers()
    assert signals.requested_signal() is None
    os.kill(os.getpid(), number)
    assert signals.requested_signal() is number


def test_the_first_signal_counts():
    signals.install_handlers()
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert signals.requested_signal() is signal.SIGUSR1


def test_a_second_interrupt_is_at_once():
    signals.install_handlers()
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_after_another_signal_waits_for_the_step():
    signals.install_handlers()
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    assert signals.requested_signal() is signal.SIGTERM


def test_handlers_are_taken_back():
    signals.install_handlers()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as a library would
    signals.keep_handlers()
    os.kill(os.getpid(), signal.SIGTERM)
    assert signals.requested_signal() is signal.SIGTERM


def test_handlers_that_were_never_installed_are_not_taken():
    before = signal.getsignal(signal.SIGTERM)
    signals.keep_handlers()
    assert signal.getsignal(signal.SIGTERM) is before


def test_import_is_quick():
    """A cluster's signal may come while torch is being imported."""
    code = "import sys, gmf_platform.cluster.signals; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_signal_while_python_ends_does_not_change_the_exit_code():
    code = (
        "import atexit, os, signal, sys\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGTERM)\n"  # runs last
        "from gmf_platform.cluster import signals\n"
        "signals.install_handlers()\n"
        "class Late:\n"
        "    def __del__(self): os.kill(os.getpid(), signal.SIGUSR1)\n"
        "sys.late = Late()\n"
        "sys.exit(75)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 75
