"""Time from `fit` to its first training step, beyond the imports of torch and Lightning.

    python benchmarks/start.py [--runs 3] [--tasks seg cls det] [--profile]

On drawn data, the mobile variant, one process without loader workers. Each run is a process of its
own; the least of the runs counts, by the clock and by the processor's time, which other work on the
machine lengthens less. ``--profile`` prints the costliest functions of one run by processor time.
"""

import argparse
import cProfile
import json
import pstats
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

CONFIGS = {
    "seg": ("ade20k", "seg_ade20k", "demo/seg"),
    "cls": ("imagenet", "cls_imagenet", "demo/cls"),
    "det": ("coco", "det_coco_retinanet", "demo/det"),
}


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "--child":
        child(sys.argv[2] == "profile", sys.argv[3:])
        return
    options = parse_arguments()
    with TemporaryDirectory() as folder:
        for task in options.tasks:
            words = prepare(Path(folder), task)
            if options.profile:
                print(start(Path(folder), words, profile=True))
                continue
            runs = [json.loads(start(Path(folder), words)) for _ in range(options.runs)]
            best = {key: min(run[key] for run in runs) for key in runs[0]}
            print(
                f"{task}: first step {best['seconds']:.2f} s after the imports of torch and "
                f"Lightning, {best['processor']:.2f} s of them processor time; those imports "
                f"{best['imports']:.2f} s, {best['imports_processor']:.2f} s of processor time",
                flush=True,
            )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", choices=list(CONFIGS), default=list(CONFIGS))
    parser.add_argument("--profile", action="store_true")
    return parser.parse_args()


def prepare(folder: Path, task: str) -> list[str]:
    """Draw data; gives the words of the command line."""
    from gmf_platform.cli.main import main as gmf

    layout, config, overlay = CONFIGS[task]
    root = folder / layout
    gmf(["sample-data", layout, str(root), "--train", "40", "--val", "8", "--size", "96"])
    words = ["fit", "--config", config, "--config", overlay, "--data.root", str(root)]
    words += ["--data.num_workers", "0", "--data.global_batch_size", "4"]
    return [*words, "--trainer.max_steps", "1", "--trainer.accelerator", "cpu"]


def start(folder: Path, words: list[str], *, profile: bool = False) -> str:
    """Run a child process, and give its last words."""
    mode = "profile" if profile else "time"
    command = [sys.executable, str(Path(__file__).resolve()), "--child", mode, *words, "--fresh"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout if profile else done.stdout.splitlines()[-1]


class Begun(BaseException):
    """The first training step."""


def child(profile: bool, words: list[str]) -> None:
    """Run the command line up to the first forward pass in training."""
    before = now()
    import lightning.pytorch  # noqa: F401
    import torch

    imported = now()
    profiler = cProfile.Profile(time.process_time)

    def begin(module: Any, inputs: Any) -> None:
        if module.training:
            raise Begun

    torch.nn.modules.module.register_module_forward_pre_hook(begin)
    from gmf_platform.cli.main import main as gmf

    if profile:
        profiler.enable()
    try:
        gmf(words)
    except Begun:
        begun = now()
        profiler.disable()
    if profile:
        pstats.Stats(profiler).sort_stats("cumulative").print_stats(80)
        return
    names = ("seconds", "processor", "imports", "imports_processor")
    spent = [b - a for a, b in zip((*imported, *before), (*begun, *imported), strict=True)]
    print(json.dumps(dict(zip(names, spent, strict=True))))


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


if __name__ == "__main__":
    main()
