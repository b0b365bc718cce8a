"""convert: weights of any origin to one safetensors file."""

import json
from collections.abc import Sequence
from pathlib import Path

from gmf_platform.cli.arguments import PlainParser
from gmf_platform.errors import ExitCode, UserError

__all__ = ["run"]


def run(verb: str, argv: Sequence[str]) -> int:
    """Run the verb; see ``convert --help``."""
    parser = PlainParser(
        verb,
        "Weights of any origin (our checkpoints, the authors' files, birder's, safetensors) to one "
        "safetensors file with the authors' names, which init_from and gmf_platform.load take.",
    )
    parser.add_argument("source", type=Path, metavar="IN")
    parser.add_argument("target", type=Path, metavar="OUT.safetensors")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    options = parser.parse_args(argv)
    if options.target.suffix != ".safetensors":
        raise UserError(f"convert: {options.target} must end in .safetensors")
    if options.target.exists() and not options.overwrite:
        raise UserError(f"convert: {options.target} exists; --overwrite replaces it")

    from safetensors.torch import save_file

    from gmf_platform.models.weight_files import FACTS, read_facts
    from gmf_platform.models.weights import find_variant, read_state_dict

    tensors = {name: value.contiguous() for name, value in read_state_dict(options.source).items()}
    options.target.parent.mkdir(parents=True, exist_ok=True)
    temporary = options.target.with_name(f".{options.target.name}.partial")
    facts = read_facts(options.source)
    save_file(tensors, temporary, metadata={FACTS: json.dumps(facts)} if facts else None)
    temporary.replace(options.target)
    variant = find_variant(tensors) or "of no known variant"
    print(f"{options.target}: {len(tensors)} tensors, GroupMixFormer {variant}")
    return ExitCode.DONE
