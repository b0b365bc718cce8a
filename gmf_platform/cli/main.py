"""The front: picks the verb, and turns errors into messages and exit codes.

Nothing here imports torch, so that ``--help`` and wrong input answer at once.
"""

import errno
import os
import select
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

from gmf_platform import __version__
from gmf_platform.cluster.signals import install_handlers, requested_signal
from gmf_platform.errors import ExitCode, UserError

__all__ = ["VERBS", "main"]

VERBS = {
    "fit": "train; the same command again goes on with the run",
    "preflight": "look at all that a run needs, on each process of a job, before it begins",
    "validate": "score a checkpoint on the validation split",
    "test": "score a checkpoint on the test split",
    "predict": "write predictions for image files",
    "replay": "make a captured training step again, to find where it goes wrong",
    "config": "show what a config comes to, and which file set each key",
    "compare": "runs side by side: what differs in their configs, and their scores",
    "show": "a contact sheet of the worst images of a validate or test",
    "benchmark": "how fast the backbone, a training step or the data's loading is here",
    "info": "parameters, GFLOPs and feature shapes of a model",
    "check-data": "open every sample of a data set, and tell what is wrong with it",
    "new": "look at your data and write a config for it",
    "convert": "weights of any origin to one safetensors file",
    "export": "a trained model as ONNX, compared with PyTorch; with a script that runs it",
    "sample-data": "draw a small data set in an official layout",
    "shard-data": "copy a data set into tar shards, for shared file systems",
}

_USAGE = """usage: python -m gmf_platform VERB [--config FILE ...] [--KEY VALUE ...]

{verbs}

  python -m gmf_platform fit --config seg_ade20k --data.root /data/ADEChallengeData2016
  python -m gmf_platform validate --run runs/seg_ade20k
  python -m gmf_platform VERB --help
"""

_OF_THE_DISK = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there, or have your quota raised",
    errno.EROFS: "have it mounted for writing, or give another folder",
}
"""What to do about a disk that takes nothing; it can be found out at any place that writes."""

_OF_PATHS = {
    errno.EACCES: "have it opened to you, or give another",
    errno.ENOTDIR: "a file is where a folder should be; give another",
    errno.EEXIST: "give another",
    errno.ENAMETOOLONG: "give a shorter name",
}
"""What to do about a path that was given, and that the system refuses."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb.

    Args:
        argv: arguments after the program's name; None: the process's own.

    Returns:
        The exit code, see ExitCode. What is no user's error is raised, and fails with 1.
    """
    try:
        code = _answer(list(sys.argv[1:] if argv is None else argv))
    except SystemExit as leave:  # behind a verb's --help, or of a run that was asked to stop
        code = int(leave.code or ExitCode.DONE)
    except BrokenPipeError:
        if not _is_unread():
            raise
        code = ExitCode.FAILED
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # Python would flush once more at its end, and say so
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _is_unread() -> bool:
    """Whether whoever read our output has gone, as behind ``| head``."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)  # what is wrong is told in any case
    return bool(output.poll(0))


def _answer(arguments: list[str]) -> int:
    verb = arguments.pop(0) if arguments else "--help"
    if verb in ("-h", "--help"):
        print(_usage())
        return ExitCode.DONE
    if verb == "--version":
        print(__version__)
        return ExitCode.DONE
    try:
        return _run(verb, arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return ExitCode.WRONG_INPUT
    except OSError as error:
        if not (said := _refusal(error)):
            raise
        print(f"error: {said}", file=sys.stderr)
        return ExitCode.WRONG_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return ExitCode.FAILED


def _refusal(error: OSError) -> str:
    """What the system refuses and what to do about it; empty where that is nothing for a user."""
    number, where = error.errno or 0, error.filename
    if number in _OF_THE_DISK:
        return (
            f"{where or 'a file'} cannot be written: {error.strerror}; {_OF_THE_DISK[number]}. "
            "What was saved before is as it was, and the same command goes on from there"
        )
    if number in _OF_PATHS and where is not None:
        return f"{where}: {error.strerror}; {_OF_PATHS[number]}"
    return ""


def _usage() -> str:
    lines = (f"  {verb:<12} {what}" for verb, what in VERBS.items())
    return _USAGE.format(verbs="\n".join(lines))


def _run(verb: str, arguments: Sequence[str]) -> int:
    if verb not in VERBS:
        near = get_close_matches(verb, VERBS, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UserError(f"no verb {verb!r}{hint} The verbs are: {', '.join(VERBS)}")
    if verb in ("fit", "preflight") and "--dry-run" not in arguments:
        install_handlers()  # before the slow imports: a cluster's signal may come that early
    module = {"validate": "evaluate", "test": "evaluate"}.get(verb, verb.replace("-", "_"))
    run = import_module(f"gmf_platform.cli.{module}").run
    code: int = run(verb, arguments)
    if verb == "preflight" and requested_signal():
        return ExitCode.REQUEUE  # what it asked to stop is the job that would begin now
    return code
