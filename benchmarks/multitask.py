"""One backbone for three tasks beside one backbone for each: the same scenes, steps and rates.

    python benchmarks/multitask.py FOLDER [--seeds 0 1 2] [--steps 250] [--curves FILE.svg]

Draws scenes in the three layouts, and fits through the command line, for each seed, the joint run
and the three single-task runs: shipped configs with their demo overlays, made equal in optimiser,
schedule, batch, image size and clipping, so that a run of a single task takes the steps, and sees
the images, that the task has in the joint run. The scores are those of the last step. Everything
stays in FOLDER; the same command again goes on where it was stopped.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gmf_platform.evaluation.relative_gain import relative_gain

TASKS = {"cls": "imagenet", "det": "coco", "seg": "ade20k"}
CONFIGS = {"joint": "multitask", "cls": "cls_imagenet", "det": "det_coco_retinanet"}
CONFIGS |= {"seg": "seg_ade20k"}
DEMOS = {"joint": "multitask", "cls": "cls", "det": "det", "seg": "seg"}
SCORES = {"cls/top1": "top-1", "det/box_ap50": "AP50", "seg/miou": "mIoU"}

Curve = list[tuple[int, float]]


def main() -> None:
    options = parse_arguments()
    draw_data(options)
    for kind in CONFIGS:
        text = yaml.safe_dump(overlay(kind, options), sort_keys=False)
        (options.folder / f"{kind}.yaml").write_text(text)
    for seed in options.seeds:
        for kind in CONFIGS:
            fit(options.folder, kind, seed)
    curves = {(k, s): read_curves(options.folder, k, s) for s in options.seeds for k in CONFIGS}
    print_scores(curves, options.seeds)
    if options.curves is not None:
        draw_curves(curves, options.seeds, options.curves)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="for data and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--batch", type=int, default=16, help="of each task")
    parser.add_argument(
        "--depths", type=int, nargs=4, default=[1, 1, 2, 1], help="blocks; mobile has 3 3 12 4"
    )
    parser.add_argument("--size", type=int, default=96, help="side of all images, pixels")
    parser.add_argument("--train", type=int, default=400, help="scenes")
    parser.add_argument("--val", type=int, default=100, help="scenes")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--curves", type=Path, help="picture to draw, .svg or .png")
    return parser.parse_args()


def draw_data(options: argparse.Namespace) -> None:
    """The same scenes in three layouts."""
    for layout in TASKS.values():
        target = options.folder / "data" / layout
        if not target.exists():
            sides = ["--train", options.train, "--val", options.val, "--size", options.size]
            gmf(options.folder, "sample-data", layout, target.resolve(), *sides)


def overlay(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """What makes a run equal to the others, behind its config and its demo overlay."""
    size = options.size
    sizes: dict[str, dict[str, Any]] = {
        "cls": {"image_size": size},
        "det": {"scale": [size, size]},
        "seg": {"crop_size": size, "scale": [4 * size, size]},
    }
    data = {
        task: {"root": f"data/{layout}", "global_batch_size": options.batch, **sizes[task]}
        for task, layout in TASKS.items()
    }
    joint = {"joint_size": [size, size], "tasks": data}
    decode_head = {"channels": 64}  # else it would take longer than the backbone
    parts: dict[str, dict[str, Any]] = {
        "joint": {"tasks": {"seg": {"decode_head": decode_head}}, "statistics_batches": 8},
        "seg": {"decode_head": decode_head},
    }
    every = options.steps // 5
    return {
        "init_from": "none",
        "model": {
            "backbone": {"variant": "mobile", "depths": options.depths},
            "optimizer": {
                "class_path": "torch.optim.AdamW",
                "init_args": {"lr": options.lr, "betas": [0.9, 0.999], "weight_decay": 0.05},
            },
            "schedule": {
                "class_path": "gmf_platform.optim.Polynomial",
                "init_args": {"warmup_steps": 40, "warmup_ratio": 1e-6, "power": 1.0},
            },
        }
        | parts.get(kind, {}),
        "data": {"num_workers": 0} | (joint if kind == "joint" else data[kind]),
        "trainer": {
            "max_epochs": None,
            "max_steps": options.steps,
            "check_val_every_n_epoch": None,
            "val_check_interval": every,
            "log_every_n_steps": 25,
            "num_sanity_val_steps": 0,
            "gradient_clip_val": 5.0,
        },
        "checkpoint": {"every_n_steps": every},
    }


def fit(folder: Path, kind: str, seed: int) -> None:
    """Begin a run, go on with it, or leave it if it is finished."""
    log = folder / "runs" / f"{kind}_{seed}" / "metrics.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    if any(json.loads(line).get("finished") for line in lines):
        return
    began = time.perf_counter()
    words = ["--config", CONFIGS[kind], "--config", f"demo/{DEMOS[kind]}"]
    words += ["--config", f"{kind}.yaml", "--seed_everything", str(seed)]
    gmf(folder, "fit", *words, "--name", f"{kind}_{seed}")
    print(f"{kind}, seed {seed}: {(time.perf_counter() - began) / 60:.1f} minutes", flush=True)


def gmf(folder: Path, *words: object) -> None:
    """The command line, in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "gmf_platform", *map(str, words)]
    if subprocess.run(command, cwd=folder, check=False).returncode:
        raise SystemExit(f"failed: {' '.join(command)}")


def read_curves(folder: Path, kind: str, seed: int) -> dict[str, Curve]:
    """Scores of a run's validations, under their names in joint training."""
    events = EventAccumulator(str(folder / "runs" / f"{kind}_{seed}"), {"scalars": 0}).Reload()
    found = {}
    for name in SCORES:
        task, _, score = name.partition("/")
        if kind in ("joint", task):
            tag = f"val/{name if kind == 'joint' else score}"
            found[name] = [(event.step + 1, event.value) for event in events.Scalars(tag)]
    return found


Curves = dict[tuple[str, int], dict[str, Curve]]


def print_scores(curves: Curves, seeds: Sequence[int]) -> None:
    """Mean and standard deviation over the seeds, and the gain of joint training."""
    joint = {s: {n: c[-1][1] for n, c in curves["joint", s].items()} for s in seeds}
    alone = {s: {n: curves[n[:3], s][n][-1][1] for n in SCORES} for s in seeds}
    print("\n| | together | each alone |\n|---|---|---|")
    for name, label in SCORES.items():
        cells = (summary([found[s][name] for s in seeds]) for found in (joint, alone))
        print(f"| {label} |", " | ".join(cells), "|")
    gains = [relative_gain(joint[s], alone[s]) for s in seeds]
    means = [
        {n: statistics.mean(found[s][n] for s in seeds) for n in SCORES} for found in (joint, alone)
    ]
    print(f"\nrelative gain {relative_gain(*means):+.3f}; by seed", *(f"{g:+.3f}" for g in gains))


def summary(values: Sequence[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    each = ", ".join(f"{value:.3f}" for value in values)
    return f"{statistics.mean(values):.3f} ± {spread:.3f} ({each})"


def draw_curves(curves: Curves, seeds: Sequence[int], target: Path) -> None:
    """A panel a score: the mean over the seeds in a band from the least to the greatest."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(SCORES), figsize=(9, 2.8), layout="constrained")
    for panel, (name, label) in zip(panels, SCORES.items(), strict=True):
        for kind, title in (("joint", "together"), (name[:3], "alone")):
            runs = [curves[kind, seed][name] for seed in seeds]
            steps = [step for step, _ in runs[0]]
            values = [[value for _, value in points] for points in zip(*runs, strict=True)]
            panel.plot(steps, [statistics.mean(found) for found in values], label=title)
            panel.fill_between(steps, list(map(min, values)), list(map(max, values)), alpha=0.2)
        panel.set(title=label, xlabel="step", xlim=(0, None), ylim=(0, None))
    panels[0].legend(frameon=False)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main()
