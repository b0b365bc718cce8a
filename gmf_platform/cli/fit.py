"""fit: train, or go on with a run."""

import json
import logging
import re
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gmf_platform.cli.arguments import Arguments, VerbParser, parse_arguments, shipped_folder
from gmf_platform.cli.config_check import checked
from gmf_platform.cli.history import origin, recorded
from gmf_platform.cli.precheck import check_checkpoint, check_data, check_init_from
from gmf_platform.cli.restarts import Starts
from gmf_platform.cli.run_directory import RunDirectory, config_differences, content_hash
from gmf_platform.cli.sources import canonical
from gmf_platform.cluster.elastic import launched_by_torchrun
from gmf_platform.errors import ExitCode, UserError

__all__ = ["fit_parser", "run", "run_name"]

log = logging.getLogger(__name__)

# How a run is carried out and watched, which a command may change when the run goes on.
_NOT_IN_NAMES = (
    "trainer.",
    "data.num_workers",
    "data.per_device",
    "guard.",
    "watchdog.",
    "checkpoint.max",
)


def run(verb: str, argv: Sequence[str]) -> int:
    """Run the verb; see ``fit --help``."""
    parser = fit_parser(verb, "Train. The same command again goes on with the run.")
    arguments = parse_arguments(parser, argv)
    sources = checked(arguments)
    check_data(sources)
    check_checkpoint(arguments.options.ckpt_path)
    folder = RunDirectory(arguments.options.runs / (arguments.options.name or run_name(arguments)))
    starts = Starts(folder.path)
    if starts.has_begun:
        arguments.options.fresh = False  # the run before is set aside already
    resumes = arguments.options.ckpt_path or (folder.last.exists() and not arguments.options.fresh)
    _check_restarts(arguments.options)
    if not resumes:
        check_init_from(sources)
    with sources.placing():
        if arguments.options.dry_run:
            return _dry_run(arguments)
        return _train(arguments, folder, starts)


def fit_parser(verb: str, description: str) -> VerbParser:
    """What `fit` understands, which others take too, so that they can be given its command line."""
    parser = VerbParser(verb, description)
    parser.add_argument("--name", help="of the run; default: the configs and what was overridden")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    parser.add_argument(
        "--fresh", action="store_true", help="set a run of this name aside and begin anew"
    )
    parser.add_argument(
        "--ckpt_path", type=Path, metavar="FILE", help="go on from this checkpoint instead"
    )
    parser.add_allow_partial()
    parser.add_argument(
        "--dry-run", action="store_true", help="two steps, figures, and nothing left behind"
    )
    return parser


def run_name(arguments: Arguments) -> str:
    """The configs' stems and what was overridden: ``seg_ade20k-variant=small``."""
    shipped = shipped_folder("configs").resolve()
    names = []
    for path in arguments.configs:
        full = path.resolve().with_suffix("")
        inside = full.is_relative_to(shipped)
        names.append("_".join(full.relative_to(shipped).parts) if inside else full.stem)
    for key, value in arguments.overrides:
        plain = re.sub(r"^data\.tasks\.\w+\.", "data.", canonical(key))
        if not plain.startswith(_NOT_IN_NAMES):
            names.append(f"{key.rpartition('.')[2]}={Path(value).name or value}")
    return re.sub(r"[^\w=.+-]+", "_", "-".join(names))[:120]


def _train(arguments: Arguments, folder: RunDirectory, starts: Starts) -> int:
    from gmf_platform.callbacks import RunLogger
    from gmf_platform.cli.device import prepare_device
    from gmf_platform.cli.experiment import Experiment, is_first_process
    from gmf_platform.cli.output import log_to
    from gmf_platform.cli.summary import say_plan
    from gmf_platform.models.weights import check_resumable

    options = arguments.options
    experiment = Experiment(arguments)
    prepare_device(experiment.config.trainer.accelerator)
    first = is_first_process()
    if first:
        folder.acquire()
        if options.fresh and folder.config.exists():
            print(f"the run before is kept as {folder.set_aside()}")
            folder.acquire()
    log_to(folder.log)
    try:
        last = None if options.fresh else _resume_from(folder, experiment)
        ckpt_path = _begin_from(options.ckpt_path, last, starts)
        _count_start(starts, ckpt_path, experiment, first=first)
        texts = {"run/config": experiment.yaml, "run/origin": _lines(origin())} if first else {}
        experiment.build(folder.path, logger=RunLogger(folder.path, texts))
        experiment.plan_training()
        done = folder.final_score(experiment.trainer.max_steps)
        if done is not None and not options.ckpt_path:
            print(f"the run {folder.path} is finished; --fresh begins anew, --name another")
            print(json.dumps(done))
            return ExitCode.DONE
        if ckpt_path is not None:
            check_resumable(experiment.task.model, ckpt_path)
        if first:
            folder.config.write_text(experiment.yaml)
        if ckpt_path is None:
            _load_initial(experiment, options)
        log.info("run          %s  (tensorboard --logdir %s)", folder.path, folder.path.parent)
        with recorded(folder) if first else nullcontext():
            begun = time.perf_counter()
            say_plan(experiment)
            _fit(experiment, ckpt_path)
            _finish(experiment, folder, seconds=time.perf_counter() - begun)
    finally:
        folder.release()
    return ExitCode.DONE


def _lines(named: Mapping[str, object]) -> str:
    return "\n".join(f"{name}: {value}" for name, value in named.items())


def _check_restarts(options: Namespace) -> None:
    launched = launched_by_torchrun()
    if launched is not None and launched.restarts and options.fresh:
        raise UserError(
            "--fresh: torchrun with --max-restarts would begin anew after each failure; give the "
            "run another --name, or move its folder away"
        )


def _begin_from(named: Path | None, last: Path | None, starts: Starts) -> Path | None:
    """The checkpoint named, but not once more after a restart."""
    launched = launched_by_torchrun()
    may_be_restart = starts.has_begun or (launched is not None and launched.restarts)
    if named and last and may_be_restart:
        log.warning("the run goes on from %s, not from --ckpt_path: it may be a restart", last)
        return last
    return named or last


def _count_start(starts: Starts, ckpt_path: Path | None, experiment: Any, *, first: bool) -> None:
    """Note where this start of the job begins, and end the job if it has begun there too often."""
    from gmf_platform.models.weights import read_facts

    step = int(read_facts(ckpt_path).get("global_step", 0)) if ckpt_path else 0
    if first:
        starts.add(step)
    starts.check_progress(step, most=experiment.config.checkpoint.max_idle_restarts)


def _load_initial(experiment: Any, options: Namespace) -> None:
    for report in experiment.load_initial(allow_partial=options.allow_partial):
        log.info("%s", report)


def _resume_from(folder: RunDirectory, experiment: Any) -> Path | None:
    """The run's last checkpoint, if it is a run of the same config.

    Raises:
        UserError: the folder holds a run of another config; the differences are listed.
    """
    if not (folder.config.is_file() and folder.last.exists()):
        return None  # a start that came to nothing has nothing to protect
    differences = config_differences(experiment.yaml, folder.config.read_text())
    if differences:
        with suppress(UserError):  # a key is gone, and the difference says which
            differences = config_differences(experiment.yaml, _completed(folder.config))
    if differences:
        shown = "\n".join(f"  {line}" for line in differences[:20])
        raise UserError(
            f"{folder.path} holds a run of another config:\n{shown}\n"
            "give this one its own --name, or set that one aside with --fresh"
        )
    return _newest_whole(folder)


def _completed(config: Path) -> str:
    """A run's config with the defaults of keys that came after the release that began it."""
    from gmf_platform.cli.experiment import Experiment

    return Experiment(Arguments(Namespace(), [config], [])).yaml


def _newest_whole(folder: RunDirectory) -> Path:
    """The last checkpoint, or the one before if that was damaged.

    Raises:
        UserError: neither can be read.
    """
    from gmf_platform.models.weights import read_facts

    try:
        read_facts(folder.last)
    except UserError as error:
        if not folder.previous.exists():
            raise
        log.warning("%s\nthe run goes on from the one before, %s", error, folder.previous)
        read_facts(folder.previous)
        return folder.previous
    return folder.last


def _fit(experiment: Any, ckpt_path: Path | None) -> None:
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from gmf_platform.cli.output import advising_on_memory

    try:
        with advising_on_memory(experiment):
            experiment.trainer.fit(
                experiment.task, experiment.datamodule, ckpt_path=ckpt_path, weights_only=True
            )
    except SIGTERMException:  # came while Lightning's handler was in place, before training
        raise SystemExit(ExitCode.REQUEUE) from None


def _finish(experiment: Any, folder: RunDirectory, *, seconds: float) -> None:
    """Print and keep the run's score."""
    from gmf_platform.callbacks import RunCheckpoint
    from gmf_platform.cli.output import rounded
    from gmf_platform.cli.summary import say_outcome

    checkpoint = next(c for c in experiment.trainer.callbacks if isinstance(c, RunCheckpoint))
    checkpoint.finish(experiment.trainer)
    if not experiment.trainer.is_global_zero:
        return
    best = folder.best if folder.best.exists() else folder.last  # no best without a validation
    score = {
        "verb": "fit",
        "run": str(folder.path),
        "step": experiment.trainer.global_step,
        "finished": True,
        checkpoint.monitor: checkpoint.best_score,
        "best_step": checkpoint.best_step,
        "checkpoint": str(best),
        "checkpoint_hash": content_hash(best) if best.exists() else None,
    }
    score = rounded(score)
    folder.record(score)
    say_outcome(experiment, best, seconds=seconds)
    print(json.dumps(score))


def _dry_run(arguments: Arguments) -> int:
    """Two steps of the real thing in a folder that is gone afterwards."""
    from gmf_platform.callbacks.throughput import memory_gib
    from gmf_platform.cli.device import prepare_device
    from gmf_platform.cli.experiment import Experiment
    from gmf_platform.cli.output import StepTimer, log_to
    from gmf_platform.cli.summary import say_plan

    log_to(None)
    experiment = Experiment(arguments)
    prepare_device(experiment.config.trainer.accelerator)
    with TemporaryDirectory() as folder:
        experiment.build(Path(folder), quiet=True)
        experiment.plan_training()
        _load_initial(experiment, arguments.options)
        trainer, steps = experiment.trainer, experiment.trainer.max_steps
        say_plan(experiment)
        timer = StepTimer()
        trainer.callbacks.append(timer)  # type: ignore[attr-defined]
        trainer.fit_loop.epoch_loop.max_steps = 2
        trainer.limit_val_batches = 1
        trainer.val_check_interval = 2 * trainer.accumulate_grad_batches
        begun = time.perf_counter()
        _fit(experiment, None)
    seconds = timer.seconds[-1]
    print(
        f"dry run      2 steps and a validation batch in {time.perf_counter() - begun:.1f} s, "
        f"{seconds:.2f} s a step\n"
        f"memory       {memory_gib(trainer.strategy.root_device):.2f} GiB at most\n"
        f"to the end   {steps * seconds / 3600:.1f} hours for {steps} steps, without validation"
    )
    return ExitCode.DONE
