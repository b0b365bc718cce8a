"""From config to trainer, task and data: LightningCLI, with our checks before and after."""

import logging
import math
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from omegaconf.errors import OmegaConfBaseException

from datamodules.base import BaseDataModule
from gmf_platform import callbacks as our_callbacks
from gmf_platform.callbacks import Bar, Progress
from gmf_platform.cli.arguments import Arguments
from gmf_platform.cli.config_check import CALLBACKS, checked
from gmf_platform.cli.launch import as_launched
from gmf_platform.cli.parser_errors import interpolation_error, shortened
from gmf_platform.cli.precheck import NO_WEIGHTS
from gmf_platform.deploy.trained import take_classes
from gmf_platform.distributed.checkpoint_io import AtomicCheckpointIO
from gmf_platform.errors import UserError, check_least
from gmf_platform.models.precision import default_precision
from gmf_platform.models.weights import LoadReport, load_part, load_weights, read_facts
from gmf_platform.tasks import BaseTask

__all__ = ["Experiment", "is_first_process"]


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def is_first_process() -> bool:
    """Whether this is the process that writes: also before the process group exists."""
    # Slurm numbers a process that was started alone too, and those it starts inherit that.
    ranks = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return next((rank for rank in ranks if rank is not None), "0") == "0"


@contextmanager
def _own_words() -> Iterator[None]:
    """Raise a constructor's UserError as it is; the parser wraps it in errors of its own."""
    try:
        yield
    except ValueError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, UserError):
                raise cause from None
            cause = cause.__cause__ or cause.__context__
        raise


class _Parser(LightningCLI):
    """LightningCLI that parses and builds task and data, and leaves the trainer to us."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--init_from", type=str | dict[str, str] | None, default=None)
        for key, path in CALLBACKS.items():
            parser.add_lightning_class_args(getattr(our_callbacks, path.rpartition(".")[2]), key)
        for part in ("model", "data"):
            parser.link_arguments("seed_everything", f"{part}.init_args.seed")
        parser.link_arguments(
            "data.class_names", "model.init_args.class_names", apply_on="instantiate"
        )

    def instantiate_classes(self) -> None:
        """Nothing yet: the resolved config is compared with the run's before anything is built."""

    def build(self) -> Namespace:
        """Build callbacks, data and task.

        Raises:
            UserError: as a constructor raised it.
        """
        with _own_words():
            return self.parser.instantiate_classes(self.config)

    def build_data(self) -> BaseDataModule:
        """Build the data alone.

        Raises:
            UserError: as its constructor raised it.
        """
        parser = LightningArgumentParser()
        parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
        with _own_words():
            data: BaseDataModule = parser.instantiate_classes(Namespace(data=self.config.data)).data
        return data

    def build_task(self, class_names: Sequence[str]) -> BaseTask:
        """Build the task alone, for the classes that the data would have.

        Raises:
            UserError: as its constructor raised it.
        """
        parser = LightningArgumentParser()
        parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
        self.config.model.init_args.class_names = list(class_names)
        with _own_words():
            task: BaseTask = parser.instantiate_classes(Namespace(model=self.config.model)).model
        return task

    def build_trainer(self, built: Namespace, callbacks: list[Any], **settings: Any) -> Trainer:
        """Build the trainer from its keys, our callbacks and the settings that are ours."""
        keys = as_launched(dict(built.trainer) | settings)
        keys["callbacks"] = [*_as_list(keys["callbacks"]), *callbacks]
        try:
            return Trainer(**keys)
        except (MisconfigurationException, TypeError, ValueError) as error:
            named = (f"trainer.{word}" for word in re.findall(r"\w+", str(error)) if word in keys)
            raise UserError(f"{next(named, 'trainer')}: {error}") from None


class Experiment:
    """A config, and what is built from it.

    Args:
        arguments: the parsed command line.

    Raises:
        UserError: the config has an unknown key or a wrong value.
    """

    def __init__(self, arguments: Arguments) -> None:
        sources = checked(arguments)
        try:
            self.cli = _parse(arguments)
        except ArgumentError as error:
            raise UserError(shortened(str(error), sources)) from None
        except OmegaConfBaseException as error:
            raise UserError(interpolation_error(error, sources)) from None
        self.config: Namespace = self.cli.config
        self.datamodule: BaseDataModule
        self.task: BaseTask
        self.trainer: Trainer

    @property
    def yaml(self) -> str:
        """The resolved config."""
        text: str = self.cli.parser.dump(self.config, skip_none=False)
        return "".join(line for line in text.splitlines(True) if not line.startswith("#"))

    @property
    def init_from(self) -> Path | None:
        """The weights to begin with; None from scratch.

        Raises:
            UserError: they are named for single parts, which is for training.
        """
        parts = self.init_parts
        if parts.keys() - {""}:
            raise UserError(
                "init_from: names weights of single parts, from which `fit` begins; name what it "
                "has trained with --run or --ckpt_path"
            )
        return parts.get("")

    @property
    def init_parts(self) -> dict[str, Path]:
        """The weights to begin with by the part of the model they are for; empty: for all of it."""
        given = self.config.init_from
        if given is None or given == NO_WEIGHTS:
            return {}
        named = {"": given} if isinstance(given, str) else dict(given)
        return {part: Path(path) for part, path in named.items()}

    def build(self, run: Path, *, logger: Logger | None = None, quiet: bool = False) -> None:
        """Build data, task and trainer.

        Args:
            run: the folder that logs, pictures and checkpoints go to.
            logger: used where the config names none.
            quiet: without progress and default callbacks.
        """
        trainer_keys = self.config.trainer
        torch.set_float32_matmul_precision("high")  # TF32 in what float32 remains
        built = self.cli.build()
        self.datamodule, self.task = built.data, built.model
        self.task.config = self.yaml
        callbacks = [] if quiet else [built[key] for key in CALLBACKS]
        callbacks += [] if quiet else [Progress(built.throughput)]
        callbacks += [Bar(built.throughput)] if not quiet and Progress.is_bar_wanted() else []
        precision = trainer_keys.precision or default_precision(trainer_keys.accelerator)
        self.trainer = self.cli.build_trainer(
            built,
            callbacks,
            precision=precision,
            default_root_dir=run,
            logger=(logger or False) if trainer_keys.logger is None else built.trainer.logger,
            plugins=[AtomicCheckpointIO(), *_as_list(built.trainer.plugins)],
            use_distributed_sampler=False,  # the loaders deal samples to processes themselves
            enable_checkpointing=not quiet,
            enable_model_summary=False,
            enable_progress_bar=False,  # the bar is ours
        )

    def build_data(self) -> BaseDataModule:
        """Build the data alone, without model and trainer."""
        return self.cli.build_data()

    def build_task(self, class_names: Sequence[str]) -> BaseTask:
        """Build the task alone, for classes of these names and without the data."""
        return self.cli.build_task(class_names)

    def load(self, path: Path, *, allow_partial: bool) -> LoadReport:
        """Read weights of any origin into the model, before any sharding."""
        return load_weights(self.task.model, path, allow_partial=allow_partial)

    def load_initial(self, *, allow_partial: bool) -> list[LoadReport]:
        """Read the weights to begin with.

        Raises:
            UserError: see `load`.
        """
        return [
            load_part(self.task.model, part, path, allow_partial=allow_partial)
            if part
            else self.load(path, allow_partial=allow_partial)
            for part, path in self.init_parts.items()
        ]

    def take_classes(self, path: Path) -> None:
        """Take the class names from a checkpoint of ours: the data may not be at hand."""
        take_classes(self.config.data, read_facts(path))

    def plan_training(self) -> None:
        """Set the trainer's numbers, which are in batches, from the config's optimiser steps.

        The whole run is one epoch of Lightning's: an epoch of the data is an affair of the
        sample order, and a stop is then always in mid-epoch, whose resume is exact.

        Raises:
            UserError: no length of the run, or batch sizes that do not divide.
        """
        trainer, keys = self.trainer, self.config.trainer
        check_least("trainer.log_every_n_steps", keys.log_every_n_steps)
        if keys.accumulate_grad_batches != 1:
            raise UserError(
                "trainer.accumulate_grad_batches follows from data.global_batch_size and "
                "data.per_device_batch_size: set those"
            )
        if keys.fast_dev_run:
            raise UserError("trainer.fast_dev_run: use fit --dry-run, which also leaves nothing")
        plan = self.datamodule.plan(trainer.world_size)
        steps = self._steps()
        trainer.accumulate_grad_batches = plan.accumulate
        trainer.fit_loop.max_epochs = -1
        trainer.fit_loop.epoch_loop.max_steps = steps
        trainer.check_val_every_n_epoch = None
        trainer.val_check_interval = self._validation_interval(steps) * plan.accumulate

    def _steps(self) -> int:
        keys = self.config.trainer
        if keys.max_steps > 0:
            return int(keys.max_steps)
        if keys.max_epochs:
            return math.ceil(keys.max_epochs * self.datamodule.steps_per_epoch())
        raise UserError("the run has no length: set trainer.max_steps or trainer.max_epochs")

    def _validation_interval(self, steps: int) -> int:
        keys = self.config.trainer
        interval = 1.0 if keys.val_check_interval is None else keys.val_check_interval
        if not isinstance(interval, int | float) or interval <= 0:
            raise UserError(
                f"trainer.val_check_interval: {interval!r} is neither a number of steps (500) nor "
                "a share of an epoch (0.5)"
            )
        if isinstance(interval, int):
            return min(interval, steps)
        epochs = interval * (keys.check_val_every_n_epoch or 1)
        return min(max(1, round(epochs * self.datamodule.steps_per_epoch())), steps)


def _parse(arguments: Arguments) -> _Parser:
    _quieten()
    return _Parser(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        run=False,
        auto_configure_optimizers=False,
        save_config_callback=None,
        seed_everything_default=0,
        parser_kwargs={
            "parser_mode": "omegaconf+",
            "allow_abbrev": False,
            "exit_on_error": False,
        },
        args=arguments.for_parser(),
    )


def _quieten() -> None:
    """Silence what says nothing to a user of ours; each with its reason."""
    # Suggestions of loggers, absent TPUs, "Seed set to 0".
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    # Each process says that it is there.
    logging.getLogger("lightning.fabric.utilities.distributed").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.strategies.deepspeed").setLevel(logging.WARNING)
    # Kernels of one pixel or channel: over an axis of one element a stride means nothing.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    # Of joint training: a check of few batches may hold no image of a task.
    warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
    # Scores are summed over processes before they are logged.
    warnings.filterwarnings("ignore", message=".*sync_dist=True")
    # A folder of shards is what `convert` and every other verb reads.
    warnings.filterwarnings("ignore", message="When saving the DeepSpeed Stage 3 checkpoint")
    # We parse the command line ourselves and hand LightningCLI the rest.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    # Lightning 2.6 calls what torch 2.13 deprecated.
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`")
    # Joint training makes its gradients itself, but not under DeepSpeed.
    warnings.filterwarnings("ignore", message="You have overridden the `LightningModule.backward`")
    # Our writer takes names from the batch, not from indices.
    warnings.filterwarnings("ignore", message="Couldn't infer the batch indices")
    # A command that is started once inside a job says so itself.
    warnings.filterwarnings("ignore", message="The `srun` command is available")
    # A short run has no line of a step, but its scores and figures.
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than")
    # Frozen stages stay in evaluation mode.
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
    # Loader workers are a setting of ours, with a default from the CPUs.
    warnings.filterwarnings("ignore", message=".*does not have many workers")
