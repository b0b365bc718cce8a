"""What is not finite in a step, and how it is told."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Finding", "describe", "few"]

_SHOWN = 8


@dataclass
class Finding:
    """What a process found in a step; plain, so that it can be sent to the others.

    Attributes:
        losses: micro-batch -> the losses that are not finite, by name.
        ids: micro-batch -> names of its samples; of those in ``losses`` or, without any, of all.
        parameters: whose gradients are not finite, the last of the model first.
    """

    losses: dict[int, dict[str, float]]
    ids: dict[int, list[str]]
    parameters: list[str]


def describe(findings: Sequence[Finding]) -> str:
    """What is not finite, on which rank and for which samples.

    Args:
        findings: of all ranks in order.

    Returns:
        Lines; the first one goes behind the step's number.
    """
    if any(finding.losses for finding in findings):
        return "\n".join(["the loss is not finite", *_losses(findings)])
    names = list(dict.fromkeys(name for finding in findings for name in finding.parameters))
    head = f"the gradients of {len(names)} parameters are not finite, while the losses are"
    if len(findings) > 1:
        head += " (they are sums over all ranks, and do not say whose they were)"
    return "\n".join([head, f"  the last of the model first: {few(names)}", *_samples(findings)])


def _losses(findings: Sequence[Finding]) -> Iterator[str]:
    for rank, finding in enumerate(findings):
        for part, losses in finding.losses.items():
            values = ", ".join(f"{name} {value}" for name, value in losses.items())
            yield f"  rank {rank}: {values}; samples {few(finding.ids[part])}"


def _samples(findings: Sequence[Finding]) -> Iterator[str]:
    for rank, finding in enumerate(findings):
        for ids in finding.ids.values():
            yield f"  rank {rank}: samples {few(ids)}"


def few(names: Sequence[str]) -> str:
    """The first of many names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
