"""benchmark: how fast things are on this machine."""

from collections.abc import Sequence
from importlib import import_module

from gmf_platform.cli.arguments import PlainParser

__all__ = ["run"]

_SUBJECTS = {
    "backbone": "GroupMixFormer beside other networks",
    "step": "where the time of a config's training step goes",
    "data": "how fast a config's training images are loaded",
}


def run(verb: str, argv: Sequence[str]) -> int:
    """Run the verb; see ``benchmark --help`` and ``benchmark step --help``."""
    parser = PlainParser(verb, "How fast things are on this machine.")
    what = "; ".join(f"{subject}: {about}" for subject, about in _SUBJECTS.items())
    parser.add_argument("subject", choices=list(_SUBJECTS), help=what)
    subject: str = parser.parse_args(argv[:1]).subject
    module = import_module(f"gmf_platform.cli.benchmark_{subject}")
    code: int = module.run(f"{verb} {subject}", argv[1:])
    return code
