"""What must hold before hours are spent: checks of what the processes of a job see."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum

__all__ = [
    "Facts",
    "Row",
    "Verdict",
    "check_all_reduce",
    "check_cpus",
    "check_disk",
    "check_equal",
    "check_gpus",
    "check_open_files",
    "check_problems",
    "check_processes",
    "check_shared_memory",
    "check_time",
    "table",
]

_COPIES = 3
"""Checkpoints on the disk at most: the last, or the one being written; the one before; the best."""

_SPARE_FILES = 256
"""Open files of a process beside those that its loader shares: libraries, sockets, logs."""


class Verdict(StrEnum):
    """What came of a check."""

    OK = "ok"
    UNKNOWN = "not known"
    WARNING = "warning"
    WRONG = "WRONG"


@dataclass(frozen=True)
class Row:
    """A check and what came of it."""

    name: str
    verdict: Verdict
    text: str


@dataclass(frozen=True)
class Facts:
    """What a process sees.

    Attributes:
        rank: of the process.
        host: name of its machine.
        versions: what must be the same on all, by name.
        gpu: model of its GPU; empty for none.
        driver: of the GPU; empty for none.
        cpus: numbers of the CPUs that it may use.
        workers: processes that will load data for it.
        shared_memory: bytes that are free in /dev/shm.
        open_files: how many it may have.
        problems: what a check on the spot found wrong, by the check's name.
    """

    rank: int
    host: str
    versions: Mapping[str, str] = field(default_factory=dict)
    gpu: str = ""
    driver: str = ""
    cpus: Sequence[int] = ()
    workers: int = 0
    shared_memory: int = 0
    open_files: int = 0
    problems: dict[str, str] = field(default_factory=dict)


def table(rows: Iterable[Row]) -> str:
    """All checks, a line each; further lines of a text are put under its first."""
    lines = []
    for row in rows:
        text = row.text.replace("\n", f"\n{'':25}")
        lines.append(f"{row.verdict:<10} {row.name:<13} {text}")
    return "\n".join(lines)


def check_processes(
    facts: Sequence[Facts],
    *,
    asked: int,
    launcher: str,
    nodes: int | None,
    gpus_per_node: int | None,
) -> Row:
    """Compare the processes with what the config asks for and with what the job was given.

    Args:
        facts: of all processes.
        asked: processes that the trainer wants.
        launcher: who has started them.
        nodes: of the job, as Slurm says; None outside a job.
        gpus_per_node: of the job; None if it has none, or outside a job.
    """
    hosts = {f.host for f in facts}
    is_alone = len(facts) == 1
    said = f"{len(facts)} on {len(hosts)} nodes, started {launcher}"
    most = max(sum(f.host == host for f in facts) for host in hosts)
    if is_alone and asked > 1 and (nodes or 1) == 1:
        text = f"{said}; fit starts {asked} itself, and what needs several is not checked here"
        return Row("processes", Verdict.WARNING, text)
    if asked != len(facts):
        return Row(
            "processes", Verdict.WRONG, f"{said}, but trainer.devices x num_nodes is {asked}"
        )
    if nodes is not None and nodes != len(hosts):
        return Row("processes", Verdict.WRONG, f"{said}, but the job has {nodes} nodes")
    if gpus_per_node and gpus_per_node != most:
        text = f"{said}, {most} a node, but the job has {gpus_per_node} GPUs a node"
        return Row("processes", Verdict.WRONG, text)
    return Row("processes", Verdict.OK, said)


def check_problems(facts: Sequence[Facts], name: str, fine: str) -> Row:
    """Report what processes found wrong on the spot, those with the same words together."""
    found = [(f.problems[name], f) for f in facts if name in f.problems]
    if not found:
        return Row(name, Verdict.OK, fine)
    lines = [f"{_who(group)}: {text}" for text, group in _grouped(found).items()]
    return Row(name, Verdict.WRONG, "\n".join(lines))


def check_equal(facts: Sequence[Facts]) -> Row:
    """Versions, code and config must be the same on all."""
    first = facts[0].versions
    names = dict.fromkeys(name for f in facts for name in f.versions)
    lines = []
    for name in names:
        groups = _grouped((f.versions.get(name, "none"), f) for f in facts)
        if len(groups) > 1:
            lines += [f"{name} {value}: {_who(group)}" for value, group in groups.items()]
    if lines:
        return Row("versions", Verdict.WRONG, "\n".join(lines))
    return Row("versions", Verdict.OK, ", ".join(f"{name} {first[name]}" for name in names))


def check_gpus(facts: Sequence[Facts]) -> Row:
    """Report GPUs and drivers; all go as fast as the slowest."""
    groups = _grouped(
        (f"{f.gpu or 'no GPU'}{f.driver and f', driver {f.driver}'}", f) for f in facts
    )
    if len(groups) == 1:
        return Row("devices", Verdict.OK, f"{len(facts)} x {next(iter(groups))}")
    lines = [f"{name}: {_who(group)}" for name, group in groups.items()]
    is_mixed = any(f.gpu for f in facts) and not all(f.gpu for f in facts)
    return Row("devices", Verdict.WRONG if is_mixed else Verdict.WARNING, "\n".join(lines))


def check_all_reduce(facts: Sequence[Facts], *, backend: str, size: int, seconds: float) -> Row:
    """Report the network between all processes.

    Args:
        facts: of all processes.
        backend: that was used.
        size: bytes that were summed.
        seconds: that it took.
    """
    count, nodes = len(facts), len({f.host for f in facts})
    # What each process sends in a ring: the "bus bandwidth" of nccl-tests (doc/PERFORMANCE.md).
    speed = size * 2 * (count - 1) / count / seconds if seconds else 0.0
    said = f"{count} processes on {nodes} nodes, {backend}: {_size(size)} in {1e3 * seconds:.1f} ms"
    return check_problems(facts, "all-reduce", f"{said}, {_size(speed)}/s")


def check_cpus(facts: Sequence[Facts]) -> Row:
    """Each process, and each that loads data for it, wants a CPU."""
    lines = []
    for host, group in _grouped((f.host, f) for f in facts).items():
        cpus = {cpu for f in group for cpu in f.cpus}
        wanted = sum(f.workers + 1 for f in group)
        if wanted > len(cpus):
            lines.append(
                f"{host}: {len(group)} processes and {wanted - len(group)} that load data, on "
                f"{len(cpus)} CPUs; more --cpus-per-task, or fewer --data.num_workers"
            )
    if lines:
        return Row("CPUs", Verdict.WARNING, "\n".join(lines))
    least = min(len(f.cpus) for f in facts)
    return Row(
        "CPUs", Verdict.OK, f"at least {least} a process, of whose {facts[0].workers} load data"
    )


def check_shared_memory(facts: Sequence[Facts], *, batch_bytes: int | None) -> Row:
    """Loaded batches wait in /dev/shm; a container's default of 64 MiB is soon full.

    Args:
        facts: of all processes.
        batch_bytes: of a device's batch; None where it cannot be told.
    """
    name = "/dev/shm"
    if not any(f.workers for f in facts):
        return Row(name, Verdict.OK, "not used: no processes load data")
    if batch_bytes is None:
        least = min(f.shared_memory for f in facts)
        return Row(
            name, Verdict.UNKNOWN, f"{_size(least)} free; how large batches are is not known"
        )
    lines = []
    needed = 0
    for host, group in _grouped((f.host, f) for f in facts).items():
        needed = sum(f.workers for f in group) * 2 * batch_bytes  # torch's prefetch_factor is 2
        free = min(f.shared_memory for f in group)
        if needed > free:
            lines.append(
                f"{host}: {_size(free)} free, batches in waiting take about {_size(needed)}; give "
                "the container more (docker --shm-size), or fewer --data.num_workers"
            )
    if lines:
        return Row(name, Verdict.WARNING, "\n".join(lines))
    return Row(name, Verdict.OK, f"batches in waiting take about {_size(needed)} a node")


def check_open_files(facts: Sequence[Facts], *, tensors: int) -> Row:
    """Each tensor that a loading process has handed over is an open file.

    Args:
        facts: of all processes.
        tensors: of a batch.
    """
    lines = []
    for f in facts:
        needed = _SPARE_FILES + f.workers * 2 * tensors
        if f.open_files < needed:
            text = f"{f.open_files} allowed, about {needed} needed; ulimit -n {2 * needed}"
            lines.append((text, f))
    if lines:
        text = "\n".join(f"{_who(group)}: {text}" for text, group in _grouped(lines).items())
        return Row("open files", Verdict.WARNING, text)
    return Row("open files", Verdict.OK, f"at least {min(f.open_files for f in facts)} allowed")


def check_disk(*, free: int, taken: int, checkpoint_bytes: int) -> Row:
    """Compare the run folder's disk with the checkpoints that will be on it.

    Args:
        free: bytes on the disk; quotas are not seen.
        taken: by checkpoints of the run that will make room for new ones.
        checkpoint_bytes: weights, buffers and the optimiser's moments.
    """
    needed = max(0, _COPIES * checkpoint_bytes - taken)
    said = f"{_size(free)} free, {_COPIES} checkpoints of {_size(checkpoint_bytes)}"
    if free < needed:
        return Row("disk", Verdict.WRONG, f"{said}: make room, or give another folder with --runs")
    return Row("disk", Verdict.OK, said)


def check_time(*, seconds_left: float | None, to_limit: float | None) -> Row:
    """Compare the run's expected end with the job's limit.

    Args:
        seconds_left: to the run's end; None if no step was timed yet.
        to_limit: seconds to the end of the job; None if there is none.
    """
    name = "time"
    limit = "no time limit" if to_limit is None else f"the job's limit is in {_time(to_limit)}"
    if seconds_left is None:
        text = f"{limit}; no step of this run was timed yet (fit --dry-run times two)"
        return Row(name, Verdict.UNKNOWN, text)
    said = f"the run needs {_time(seconds_left)} at its speed so far; {limit}"
    if to_limit is not None and seconds_left > to_limit:
        starts = math.ceil(seconds_left / max(1.0, to_limit))
        return Row(name, Verdict.WARNING, f"{said}: about {starts} starts in all")
    return Row(name, Verdict.OK, said)


def _grouped(pairs: Iterable[tuple[str, Facts]]) -> dict[str, list[Facts]]:
    groups: dict[str, list[Facts]] = defaultdict(list)
    for key, value in pairs:
        groups[key].append(value)
    return groups


def _who(facts: Sequence[Facts]) -> str:
    """``rank 0, 1 (node1), 4 (node2)``."""
    hosts = _grouped((f.host, f) for f in facts)
    parts = (f"{', '.join(str(f.rank) for f in group)} ({host})" for host, group in hosts.items())
    return f"rank {', '.join(parts)}"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
