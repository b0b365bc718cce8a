"""Opens each sample of a data set once, several at a time, and tells what was found."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol

from torch.utils.data import DataLoader, Dataset

from datamodules.images import DataError, Flaw, Image8
from datamodules.loader import begin_worker
from gmf_platform.errors import counted

__all__ = ["Finding", "Inspectable", "Report", "class_table", "inspect_all"]

SHOWN = 20
"""How many problems of a kind are written out."""


@dataclass(frozen=True)
class Finding:
    """What one sample shows.

    Attributes:
        problems: all that is wrong with it.
        size: height and width of the image in pixels; None if it cannot be read.
        counts: label -> how much of it there is, in the set's unit.
    """

    problems: list[DataError] = field(default_factory=list)
    size: tuple[int, int] | None = None
    counts: Mapping[int, int] = field(default_factory=dict)


class Inspectable(Protocol):
    """A split of a data set as `check-data` sees it; each kind of data set gives its own.

    Attributes:
        unit: what ``Finding.counts`` counts, e.g. ``pixels``.
    """

    unit: str

    def __len__(self) -> int: ...

    def problems(self) -> list[DataError]:
        """What is wrong with the list of samples, known without opening any."""
        ...

    def notes(self) -> list[str]:
        """What is left out though nothing is wrong with it, in sentences."""
        ...

    def inspect(self, index: int) -> Finding:
        """Open a sample; what is wrong with it is returned, not raised."""
        ...

    def judge(self, counts: Mapping[int, int]) -> list[DataError]:
        """What is wrong with the split as a whole, by the sums of all counts."""
        ...

    def name(self, index: int) -> str:
        """What to call a sample under its picture."""
        ...

    def read(self, index: int) -> tuple[Image8, Any]:
        """A sound sample's image (H, W, 3) and its targets, to be drawn."""
        ...


@dataclass
class Report:
    """What the samples of a split showed together.

    Attributes:
        samples: how many there are.
        unit: what ``counts`` counts.
        notes: what is left out though nothing is wrong with it.
        problems: by kind, in the order of the samples.
        counts: label -> sum over the samples.
        images_with: label -> samples in which it occurs.
        sizes: height and width of each readable image.
        sound: indices of samples without a problem.
    """

    samples: int
    unit: str
    notes: list[str] = field(default_factory=list)
    problems: dict[Flaw, list[str]] = field(default_factory=lambda: defaultdict(list))
    counts: Counter[int] = field(default_factory=Counter)
    images_with: Counter[int] = field(default_factory=Counter)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    sound: list[int] = field(default_factory=list)

    def note(self, problems: Sequence[DataError]) -> None:
        """Add problems."""
        for problem in problems:
            self.problems[problem.flaw].append(str(problem))

    def add(self, index: int, finding: Finding) -> None:
        """Add what one sample showed."""
        self.note(finding.problems)
        if not finding.problems:
            self.sound.append(index)
        if finding.size is not None:
            self.sizes.append(finding.size)
        self.counts.update(finding.counts)
        self.images_with.update(label for label, count in finding.counts.items() if count)

    @property
    def num_problems(self) -> int:
        """How many problems there are, of all kinds."""
        return sum(map(len, self.problems.values()))

    def lines(self) -> list[str]:
        """Number of samples, image sizes, notes, and up to 20 problems of each kind."""
        lines = [f"{counted(self.samples, 'image', 'images')}, {self._sizes()}", *self.notes]
        for flaw in Flaw:
            found = self.problems.get(flaw, [])
            if found:  # what to do, a message's further lines, is said once
                lines.append(f"{flaw}: {len(found)}")
                lines += [f"  {line}" for line in found[0].splitlines()]
                lines += [f"  {said.splitlines()[0]}" for said in found[1:SHOWN]]
            if len(found) > SHOWN:
                lines.append(f"  ... and {len(found) - SHOWN} more")
        return lines

    def _sizes(self) -> str:
        if not self.sizes:
            return "none of them readable"
        heights, widths = zip(*self.sizes, strict=True)
        if len(set(self.sizes)) == 1:
            return f"all {widths[0]} x {heights[0]} pixels"
        return (
            ", ".join(
                f"{name} {min(edges)} / {round(median(edges))} / {max(edges)}"
                for name, edges in (("width", widths), ("height", heights))
            )
            + " pixels (min / median / max)"
        )


class _Inspections(Dataset[tuple[int, Finding]]):
    """The inspections as torch's loader wants them."""

    def __init__(self, split: Inspectable) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[int, Finding]:
        return index, self.split.inspect(index)


def inspect_all(
    split: Inspectable, *, workers: int, progress: Callable[[int, int], None] | None = None
) -> Report:
    """Inspect each sample of a split.

    Args:
        split: what to inspect.
        workers: processes that open files; 0 for none beside this one.
        progress: called with the samples done and their number.
    """
    report = Report(len(split), split.unit, split.notes())
    report.note(split.problems())
    loader: DataLoader[Any] = DataLoader(
        _Inspections(split),
        batch_size=4,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=begin_worker,
    )
    done = 0
    for batch in loader:
        for index, finding in batch:
            report.add(index, finding)
        done += len(batch)
        if progress is not None:
            progress(done, len(split))
    report.note(split.judge(report.counts))
    return report


def class_table(reports: Mapping[str, Report], class_names: Sequence[str]) -> list[str]:
    """The classes' shares of all labelled pixels, and in how many images each occurs.

    Args:
        reports: of each split.
        class_names: in label order.
    """
    width = max(map(len, class_names)) + 5
    unit = next(iter(reports.values())).unit
    lines = [
        " " * width + "".join(f"{split:>20}" for split in reports),
        " " * width + f"{unit:>12}{'images':>8}" * len(reports),
    ]
    for label, name in enumerate(class_names):
        cells = (_cell(report, label, len(class_names)) for report in reports.values())
        lines.append(f"{label:>3}  {name}".ljust(width) + "".join(cells))
    for split, report in reports.items():
        absent = [name for i, name in enumerate(class_names) if not report.images_with[i]]
        if absent:
            lines.append(f"never in {split}: {', '.join(absent)}")
        ignored = sum(n for label, n in report.counts.items() if label >= len(class_names))
        if ignored:
            share = ignored / report.counts.total()
            lines.append(f"ignored in {split}: {share:.1%} of the {unit}")
    return lines


def _cell(report: Report, label: int, num_classes: int) -> str:
    labelled = sum(n for other, n in report.counts.items() if other < num_classes)
    share = report.counts[label] / labelled if labelled else 0.0
    return f"{share:>12.2%}{report.images_with[label]:>8}"
