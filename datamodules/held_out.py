"""Which samples of an undivided set are for validation."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path

from gmf_platform.errors import UserError

__all__ = ["check_fraction", "chosen_by_hash", "listed_names", "write_list"]


def check_fraction(val_fraction: float | None) -> None:
    """Check data.val_fraction.

    Raises:
        UserError: it is not between 0 and 1.
    """
    if val_fraction is not None and not 0 < val_fraction < 1:
        raise UserError(f"data.val_fraction: {val_fraction} is no share between 0 and 1")


def chosen_by_hash(names: Sequence[str], count: int, *, seed: int) -> set[str]:
    """So many of the names; most of them stay chosen when others are added."""
    ordered = sorted(names, key=lambda name: sha256(f"{seed}/{name}".encode()).digest())
    return set(ordered[:count])


def listed_names(path: Path, names: Sequence[str], *, what: str) -> set[str]:
    """The names that a list means; it may leave out folders and suffixes where that is clear.

    Args:
        path: a text file, one name a line.
        names: all there are.
        what: what they are the names of, in the singular.

    Raises:
        UserError: there is no such file; or lines that name nothing, or several.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what_failed = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UserError(f"data.val_list: {path}: cannot be read: {what_failed}") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if set(names).issuperset(lines):
        return set(lines)
    known: dict[str, set[str]] = defaultdict(set)
    for name in names:
        for short in (name, Path(name).name, str(Path(name).with_suffix("")), Path(name).stem):
            known[short].add(name)
    wrong = [line for line in lines if len(known.get(line, ())) != 1]
    if wrong:
        count = len(known.get(wrong[0], ()))
        said = f"{count} images are called so" if count else f"no {what} is called so"
        raise UserError(
            f"data.val_list: {path}: {len(wrong)} of {len(lines)} lines are no image's name; the "
            f"first is {wrong[0]!r}: {said} (names are like {names[0] if names else 'a.jpg'})"
        )
    return {name for line in lines for name in known[line]}


def write_list(folder: Path, names: Iterable[str]) -> None:
    """Keep the names in a run as ``validation.txt``, which can serve as data.val_list."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "validation.txt").write_text("".join(f"{name}\n" for name in sorted(names)))
