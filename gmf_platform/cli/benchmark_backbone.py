"""benchmark backbone: GroupMixFormer beside other networks, in turns."""

import argparse
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmf_platform.cli.arguments import PlainParser, positive
from gmf_platform.errors import ExitCode, UserError

if TYPE_CHECKING:
    from gmf_platform.benchmark.backbones import Figures, Setting

__all__ = ["run"]

_MODES = ("train", "infer")
_PRECISIONS = ("float32", "bf16")
_FORMATS = ("channels_last", "contiguous")
_VARIANTS = ("mobile", "tiny", "small", "base", "large")


def run(verb: str, argv: Sequence[str]) -> int:
    """Run the verb; see ``benchmark backbone --help``."""
    options = _parser(verb).parse_args(argv)
    _check(options)

    import torch

    from gmf_platform.benchmark.backbones import Setting, build_networks, compare
    from gmf_platform.benchmark.timing import machine
    from gmf_platform.cli.device import prepare_device

    prepare_device(options.device)
    kind = options.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    elif kind == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees none")
    device = torch.device(kind)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("high")  # as training does: TF32 where there is such
    networks = build_networks(
        options.against,
        options.variant,
        size=options.size,
        device=device,
        compiled=options.compile,
    )
    about = machine(device)
    print("  ".join(f"{key} {value}" for key, value in about.items()))
    sections = []
    for mode, precision, memory_format in product(
        options.mode, options.precision, options.memory_format
    ):
        setting = Setting(mode, precision, memory_format, options.batch, options.size)
        figures = compare(networks, setting, runs=options.runs, device=device, clock=options.clock)
        _print(setting, figures)
        sections.append(_section(setting, figures))
    command = shlex.join(["python", "-m", "gmf_platform", *verb.split(), *argv])
    report = {
        "verb": verb,
        "command": command,
        "machine": about,
        "variant": options.variant,
        "clock": options.clock,
        "sections": sections,
    }
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))
    return ExitCode.DONE


def _parser(verb: str) -> PlainParser:
    parser = PlainParser(
        verb,
        "Time and memory of GroupMixFormer beside other networks. They take turns in one process; "
        "ratios are of the smallest times, and in brackets the least and the most of a round.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--variant", choices=_VARIANTS, default="tiny", help="of GroupMixFormer")
    parser.add_argument(
        "--against",
        type=_list_of(None),
        default=[],
        metavar="NAME[,NAME]",
        help="checkpointing (ours with it), birder, timm:NAME, official:FILE (the authors' "
        "models/groupmixformer.py)",
    )
    for name, known, default in (
        ("--mode", _MODES, "train,infer"),
        ("--precision", _PRECISIONS, "float32,bf16"),
        ("--memory-format", _FORMATS, "channels_last"),
    ):
        words = ",".join(known)
        parser.add_argument(name, type=_list_of(known), default=default, metavar=f"[{words}]")
    parser.add_argument("--compile", action="store_true", help="each compiled as well")
    parser.add_argument("--batch", type=positive, default=8, help="images at once")
    parser.add_argument("--size", type=positive, default=224, help="of images, in pixels")
    parser.add_argument("--runs", type=positive, default=10, help="timed rounds")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=positive, help="of a CPU; default: PyTorch's")
    parser.add_argument(
        "--clock",
        choices=("wall", "processor"),
        default="wall",
        help="processor: what this process was given; of use on a busy CPU with one thread",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="the report, to keep")
    return parser


def _list_of(known: Sequence[str] | None) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        words = [word for word in text.split(",") if word]
        for word in words:
            if known is not None and word not in known:
                raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(known)}")
        return list(dict.fromkeys(words))

    return parse


def _check(options: argparse.Namespace) -> None:
    if options.size < 64:
        raise UserError("--size takes at least 64 pixels")
    if options.clock == "processor" and options.device != "cpu":
        raise UserError("--clock processor goes with --device cpu: a GPU's time is not in it")
    if options.json is not None and not options.json.absolute().parent.is_dir():
        raise UserError(f"--json {options.json}: no folder {options.json.absolute().parent}")


def _section(setting: "Setting", figures: Mapping[str, "Figures"]) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(setting) | {"networks": {name: f.facts() for name, f in figures.items()}}


def _print(setting: "Setting", figures: Mapping[str, "Figures"]) -> None:
    from statistics import median

    compiled = any(f.ratio_to_compiled is not None for f in figures.values())
    width = max(len(name) for name in figures)
    print(
        f"\n{setting.mode}, {setting.precision}, {setting.memory_format}, batch {setting.batch} "
        f"at {setting.size}"
    )
    print(
        f"{'':{width}}  {'best ms':>9} {'median':>9} {'images/s':>9} "
        f"{'held MiB':>9} {'peak MiB':>9}  {'time over ours':22}"
        + ("over ours compiled" if compiled else "")
    )
    for name, found in figures.items():
        memory = found.memory
        cells = [f"{1e3 * min(found.seconds):9.2f}", f"{1e3 * median(found.seconds):9.2f}"]
        cells.append(f"{found.images_per_second:9.1f}")
        kept = (memory.held, memory.peak) if memory else (None, None)
        cells += [f"{'-' if n is None else format(n / 2**20, '.1f'):>9}" for n in kept]
        ratios = f"{found.ratio!s:22}{found.ratio_to_compiled or ''}".rstrip()
        print(f"{name:{width}}  {' '.join(cells)}  {ratios}", flush=True)
