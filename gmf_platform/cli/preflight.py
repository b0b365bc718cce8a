"""preflight: look at all that a run needs, on each process of a job, before it begins."""

import os
import platform
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from gmf_platform import __version__
from gmf_platform.cli.arguments import Arguments, VerbParser, parse_arguments
from gmf_platform.cli.fit import fit_parser, run_name
from gmf_platform.cli.precheck import check_checkpoint, check_data, check_init_from
from gmf_platform.cli.run_directory import RunDirectory
from gmf_platform.cli.sources import Sources
from gmf_platform.cluster import surroundings
from gmf_platform.errors import ExitCode, UserError

if TYPE_CHECKING:
    from gmf_platform.cli.experiment import Experiment
    from gmf_platform.cluster.meeting import Meeting, Place
    from gmf_platform.cluster.preflight import Facts, Row

__all__ = ["run"]

_LAG = 10.0
"""Seconds in which a network's disk must show a file to the other nodes."""

_MOST_BYTES = 256 << 20
"""Of the all-reduce; a larger tensor is no faster."""


def run(verb: str, argv: Sequence[str]) -> int:
    """Run the verb; see ``preflight --help``."""
    arguments = parse_arguments(_parser(verb), argv)
    folder = RunDirectory(arguments.options.runs / (arguments.options.name or run_name(arguments)))
    problems = _look_at_paths(arguments, folder)

    from gmf_platform.cluster.meeting import Absent, Meeting, own_place
    from gmf_platform.cluster.preflight import Row, Verdict, table

    place = own_place()
    try:
        meeting = Meeting(place, seconds=arguments.options.wait)
        rows = _look(meeting, arguments, folder, problems)
        is_right = all(row.verdict != Verdict.WRONG for row in rows)
        is_right = meeting.gather("verdict", is_right)[0]  # all leave with the first one's
        meeting.leave()
    except Absent as error:
        rows, is_right = [Row("processes", Verdict.WRONG, str(error))], False
    if place.rank == 0:
        print(table(rows), flush=True)
    elif not is_right and rows:
        print(f"error: {rows[0].text}", file=sys.stderr)
    return ExitCode.DONE if is_right else ExitCode.WRONG_INPUT


def _parser(verb: str) -> VerbParser:
    parser = fit_parser(
        verb,
        "Look at all that a run needs, on each process that srun or torchrun starts: the "
        "command line is that of `fit`. Exit code 2 if anything is wrong.",
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="for a process that has not come; it is named then (default: 120)",
    )
    return parser


@contextmanager
def _noting(problems: dict[str, str], name: str) -> Iterator[None]:
    """Note a user's error instead of ending: the other processes wait for this one's word."""
    try:
        yield
    except UserError as error:
        problems[name] = str(error)


def _look_at_paths(arguments: Arguments, folder: RunDirectory) -> dict[str, str]:
    """What is wrong with the paths in the config, as this node sees them."""
    problems: dict[str, str] = {}
    with _noting(problems, "config"):
        sources = Sources(arguments)
        with _noting(problems, "data"):
            check_data(sources)
        with _noting(problems, "weights"):
            check_checkpoint(arguments.options.ckpt_path)
            if not (arguments.options.ckpt_path or folder.last.exists()):
                check_init_from(sources)
    return problems


def _look(
    meeting: "Meeting", arguments: Arguments, folder: RunDirectory, problems: dict[str, str]
) -> "list[Row]":
    """All checks; the first process's rows are of all, the others' are none."""
    from gmf_platform.cluster.preflight import Facts

    is_first = meeting.place.rank == 0
    experiment = None
    with _noting(problems, "config"):
        experiment = _read_config(arguments, folder, whole=is_first)
    own = _facts(meeting, experiment, problems)
    facts = [Facts(**said) for said in meeting.gather("facts", asdict(own))]
    problem = _exchange_files(meeting, folder.path, [f.host for f in facts])
    unseen = meeting.gather("files", problem)
    facts = [_with(f, "run folder", said) for f, said in zip(facts, unseen, strict=True)]
    all_reduce = _all_reduce(meeting, experiment, facts)
    return _rows(facts, experiment, folder, meeting.place, all_reduce) if is_first else []


def _with(facts: "Facts", name: str, problem: str | None) -> "Facts":
    if problem is not None:
        facts.problems[name] = problem
    return facts


def _read_config(arguments: Arguments, folder: RunDirectory, *, whole: bool) -> "Experiment":
    """The resolved config, and, for one process of all, what is built from it.

    Raises:
        UserError: it is wrong.
    """
    from gmf_platform.cli.device import check_device
    from gmf_platform.cli.experiment import Experiment

    experiment = Experiment(arguments)
    check_device(experiment.config.trainer.accelerator)
    if whole:
        experiment.build(folder.path, quiet=True)
        experiment.datamodule.plan(experiment.trainer.world_size)
    return experiment


def _facts(
    meeting: "Meeting", experiment: "Experiment | None", problems: dict[str, str]
) -> "Facts":
    from datamodules.base import available_cpus
    from gmf_platform.cluster.preflight import Facts

    keys = experiment.config.data.init_args if experiment else Namespace()
    wanted = getattr(keys, "num_workers", None)
    gpu = _gpu(meeting, experiment)
    return Facts(
        rank=meeting.place.rank,
        host=platform.node(),
        versions=_versions(experiment, getattr(keys, "root", None)),
        gpu=gpu,
        driver=(surroundings.driver_version() or "") if gpu else "",
        cpus=sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [],
        workers=min(8, available_cpus()) if wanted is None else int(wanted),
        shared_memory=surroundings.shared_memory(),
        open_files=surroundings.open_files(),
        problems=problems,
    )


def _gpu(meeting: "Meeting", experiment: "Experiment | None") -> str:
    """Model and memory of this process's GPU; empty where it uses none."""
    import torch

    on_cpu = experiment is not None and experiment.config.trainer.accelerator == "cpu"
    if on_cpu or not torch.cuda.is_available():
        return ""
    found = torch.cuda.get_device_properties(_device_index(meeting))
    return f"{found.name}, {found.total_memory / 2**30:.0f} GiB"


def _device_index(meeting: "Meeting") -> int:
    import torch

    return meeting.place.local_rank % torch.cuda.device_count()


def _versions(experiment: "Experiment | None", root: Any) -> dict[str, str]:
    """What must be the same on all nodes."""
    import torch

    code = surroundings.code_version(Path(__file__).parent)
    versions = {"gmf_platform": f"{__version__}{code and f' {code}'}"}
    versions["Python"] = platform.python_version()
    versions |= surroundings.package_versions()
    if torch.version.cuda:
        versions["CUDA"] = torch.version.cuda
    if experiment is not None:
        versions["config"] = sha256(experiment.yaml.encode()).hexdigest()[:8]
    if root is not None:
        versions["data"] = _listing(Path(root))
    return versions


def _listing(root: Path) -> str:
    """A short name for what is in a folder and in the folders in it."""
    names: list[str] = []
    with suppress(OSError):
        names = [entry.name for entry in os.scandir(root)]
        for entry in list(os.scandir(root)):
            if entry.is_dir():
                names += [f"{entry.name}/{inner.name}" for inner in os.scandir(entry)]
    digest = sha256("\n".join(sorted(names)).encode()).hexdigest()[:8]
    return f"{digest} ({len(names)} names)"


def _exchange_files(meeting: "Meeting", folder: Path, hosts: Sequence[str]) -> str | None:
    """Write a file into the run's folder, and read that of a process on another node.

    Returns:
        What was wrong.
    """
    shared, rank = folder / "preflight", meeting.place.rank
    own, token, problem = shared / f"rank-{rank}", uuid4().hex, None
    try:
        shared.mkdir(parents=True, exist_ok=True)
        own.write_text(token)
    except OSError as error:
        token, problem = "", f"{folder} cannot be written: {error.strerror}"
    tokens = meeting.gather("tokens", token)
    partner = _partner(rank, hosts)
    if (
        problem is None
        and tokens[partner]
        and not _appears(shared / f"rank-{partner}", tokens[partner])
    ):
        problem = (
            f"the file that rank {partner} on {hosts[partner]} wrote into {folder} is not there "
            f"after {_LAG:.0f} s: all nodes must share the folder of the runs"
        )
    meeting.gather("read", None)
    with suppress(OSError):
        own.unlink(missing_ok=True)
    meeting.gather("removed", None)
    if rank == 0:
        with suppress(OSError):  # not empty: a run's own files
            shared.rmdir()
            folder.rmdir()
    return problem


def _partner(rank: int, hosts: Sequence[str]) -> int:
    """The next process on another node, or on the same one if there is no other."""
    others = [(rank + i) % len(hosts) for i in range(1, len(hosts) + 1)]
    return next((other for other in others if hosts[other] != hosts[rank]), others[0])


def _appears(file: Path, token: str) -> bool:
    end = time.monotonic() + _LAG
    while True:
        with suppress(OSError):
            if file.read_text() == token:
                return True
        if time.monotonic() > end:
            return False
        time.sleep(0.2)


def _all_reduce(
    meeting: "Meeting", experiment: "Experiment | None", facts: "Sequence[Facts]"
) -> "Row | None":
    """An all-reduce over all processes, as large as the gradients of the model."""
    import torch

    from gmf_platform.cli.demands import trained_bytes
    from gmf_platform.cluster.meeting import all_reduce_speed
    from gmf_platform.cluster.preflight import check_all_reduce

    if meeting.place.world_size == 1:
        return None
    on_gpus = all(f.gpu for f in facts)
    device = torch.device("cuda", _device_index(meeting)) if on_gpus else torch.device("cpu")
    backend = "nccl" if on_gpus else "gloo"
    own = _MOST_BYTES
    if experiment is not None and meeting.place.rank == 0:  # who has built the model
        own = trained_bytes(experiment)
    size = min(_MOST_BYTES, meeting.gather("gradients", own)[0])
    problem, seconds = None, 0.0
    try:
        size, seconds = all_reduce_speed(meeting, backend, device=device, most_bytes=size)
    except (RuntimeError, UserError) as error:
        problem = str(error).splitlines()[0]
    said = meeting.gather("all-reduce", problem)
    for f, problem in zip(facts, said, strict=True):
        _with(f, "all-reduce", problem)
    return check_all_reduce(facts, backend=backend, size=size, seconds=seconds)


def _rows(
    facts: "Sequence[Facts]",
    experiment: "Experiment | None",
    folder: RunDirectory,
    place: "Place",
    all_reduce: "Row | None",
) -> "list[Row]":
    """All checks of what the processes said."""
    from gmf_platform.cluster import preflight as checks

    asked = len(facts) if experiment is None else experiment.trainer.world_size
    rows = [
        checks.check_processes(
            facts,
            asked=asked,
            launcher=place.launcher,
            nodes=surroundings.job_nodes(),
            gpus_per_node=surroundings.gpus_per_node(),
        ),
        checks.check_problems(facts, "config", "can be built"),
        checks.check_problems(facts, "data", "its files are there"),
        checks.check_problems(facts, "weights", "to begin with are there"),
        checks.check_equal(facts),
        checks.check_gpus(facts),
        checks.check_problems(facts, "run folder", f"{folder.path}, shared by all"),
        checks.check_cpus(facts),
        *([] if all_reduce is None else [all_reduce]),
        *([] if experiment is None else _demands(facts, experiment, folder)),
    ]
    from gmf_platform.cli.demands import seconds_left

    left = seconds_left(folder)
    return [*rows, checks.check_time(seconds_left=left, to_limit=surroundings.seconds_to_limit())]


def _demands(
    facts: "Sequence[Facts]", experiment: "Experiment", folder: RunDirectory
) -> "list[Row]":
    from gmf_platform.cli import demands
    from gmf_platform.cluster import preflight as checks

    files = (f for f in folder.checkpoints.rglob("*") if f.is_file() and not f.is_symlink())
    return [
        checks.check_disk(
            free=surroundings.free_bytes(folder.path),
            taken=sum(file.stat().st_size for file in files),
            checkpoint_bytes=demands.checkpoint_bytes(experiment),
        ),
        checks.check_shared_memory(facts, batch_bytes=demands.batch_bytes(experiment)),
        checks.check_open_files(facts, tensors=demands.batch_tensors(experiment)),
    ]
