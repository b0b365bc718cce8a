"""How a model is spread over processes: DDP, FSDP, DeepSpeed ZeRO, each as a strategy of Lightning's."""

import logging
import os
from datetime import timedelta
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    ModelParallelStrategy,
    Strategy,
)
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from gmf_platform.distributed.group import join_group
from gmf_platform.distributed.sharding import shard
from gmf_platform.distributed.zero_folders import to_universal, zero_processes
from gmf_platform.errors import UserError
from gmf_platform.ranges import NonNegativeInt, PositiveFloat

__all__ = ["DDP", "FSDP", "ZeRO", "saves_folders"]

log = logging.getLogger(__name__)

_PARAMETERS = signature(DistributedDataParallel.__init__).parameters
# Torch 2.13 gave it another name. Norms in mode `sync` agree without it, those in mode `train`
# before they are used.
_BUFFERS_AS_THEY_ARE: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _PARAMETERS else "broadcast_buffers": False
}


class DDP(DDPStrategy):
    """A whole model in each process; gradients are averaged.

    Args:
        static_graph: each step uses the same parameters in the same order, as all our tasks do:
            DDP then learns the order once. Not with one task per step in joint training.
        timeout_minutes: after which a collective that a process misses ends the job.
        process_group_backend: ``nccl`` or ``gloo``; None: as the device needs.
    """

    def __init__(
        self,
        *,
        static_graph: bool = False,
        timeout_minutes: PositiveFloat = 30.0,
        process_group_backend: str | None = None,
    ) -> None:
        super().__init__(
            static_graph=static_graph,
            gradient_as_bucket_view=True,
            timeout=timedelta(minutes=timeout_minutes),
            process_group_backend=process_group_backend,
            **_BUFFERS_AS_THEY_ARE,
        )

    def setup_environment(self) -> None:
        """As Lightning's, in a group of our own making."""
        _join(self)
        super().setup_environment()


class FSDP(ModelParallelStrategy):
    """Parameters, gradients and moments in shards over all processes (FSDP2, ``fully_shard``).

    Each block is gathered when it is used. Parameters are gathered and gradients of them computed
    in ``compute``; gradients are summed over processes in float32, and norms compute in float32.

    Args:
        compute: ``auto`` takes bfloat16 if the trainer's precision is bf16-mixed.
        min_unit_parameters: smaller blocks are gathered together with what is around them.
        sharded_checkpoints: a folder with one file a process, in place of one file with all.
            For models that do not fit into one process's memory.
        timeout_minutes: see DDP, as the next.
        process_group_backend: see DDP.
    """

    def __init__(
        self,
        *,
        compute: Literal["auto", "float32", "bfloat16"] = "auto",
        min_unit_parameters: NonNegativeInt = 100_000,
        sharded_checkpoints: bool = False,
        timeout_minutes: PositiveFloat = 30.0,
        process_group_backend: str | None = None,
    ) -> None:
        super().__init__(
            data_parallel_size=1,
            tensor_parallel_size=1,
            save_distributed_checkpoint=sharded_checkpoints,
            process_group_backend=process_group_backend,
            timeout=timedelta(minutes=timeout_minutes),
        )
        self.compute, self.min_unit_parameters = compute, min_unit_parameters
        self.sharded_checkpoints = sharded_checkpoints

    def setup_environment(self) -> None:
        """Shard over all processes; Lightning's own default is over none."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        _join(self)
        super().setup_environment()

    def prepare(self, model: nn.Module) -> None:
        """Shard a model in place, from the first process's weights; a second time does nothing."""
        shard(
            model.to(self.root_device),
            self.device_mesh["data_parallel"],
            dtype=self._dtype(),
            min_unit_parameters=self.min_unit_parameters,
        )

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """As Lightning's, which takes moments to be in the order of the model's parameters.

        Raises:
            UserError: they are in the optimiser's order, as those of other strategies.
        """
        path = Path(checkpoint_path)
        if path.is_file():
            self._check_moments(path)
        return super().load_checkpoint(checkpoint_path, weights_only)

    def _check_moments(self, path: Path) -> None:
        assert self.model is not None
        index = {parameter: i for i, parameter in enumerate(self.model.parameters())}
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        states = content.get("optimizer_states", [])
        for state, optimizer in zip(states, self.optimizers, strict=False):
            own = [[index[p] for p in group["params"]] for group in optimizer.param_groups]
            if [group["params"] for group in state["param_groups"]] != own:
                raise UserError(
                    f"{path}: was saved under another strategy, so the run cannot go on under "
                    "FSDP; its weights can: begin another run with --init_from"
                )

    def on_validation_start(self) -> None:
        """Gather all parameters: processes may hold unequal numbers of evaluation batches."""
        self._hold_whole(True)

    def on_validation_end(self) -> None:
        """Let go of them."""
        self._hold_whole(False)

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    def _hold_whole(self, whole: bool) -> None:
        assert self.model is not None
        units = [unit for unit in self.model.modules() if isinstance(unit, FSDPModule)]
        for unit in units:
            unit.set_reshard_after_forward(not whole, recurse=False)
            if whole:
                unit.unshard()
            else:
                unit.reshard()

    def _dtype(self) -> torch.dtype:
        match self.compute:
            case "float32":
                return torch.float32
            case "bfloat16":
                return torch.bfloat16
            case "auto":
                mixed = self.precision_plugin.precision == "bf16-mixed"
                return torch.bfloat16 if mixed else torch.float32


class ZeRO(DeepSpeedStrategy):
    """DeepSpeed's ZeRO: moments (1), gradients too (2), parameters too (3) in shards.

    Weights are float32 and computed with in ``autocast``: DeepSpeed's own bf16 mode casts the
    parameters of norms and leaves their statistics. On a CPU this is for tests alone.

    Args:
        stage: of ZeRO.
        autocast: of the model's operations.
        offload_optimizer: moments in the memory of the CPU.
        persistence_threshold: stage 3 does not shard parameters of fewer elements.
        timeout_minutes: see DDP, as the next.
        process_group_backend: see DDP.

    Raises:
        UserError: DeepSpeed is not installed.
    """

    def __init__(
        self,
        *,
        stage: Literal[1, 2, 3] = 2,
        autocast: Literal["bfloat16", "float16", "none"] = "bfloat16",
        offload_optimizer: bool = False,
        persistence_threshold: NonNegativeInt = 100_000,
        timeout_minutes: PositiveFloat = 30.0,
        process_group_backend: str | None = None,
    ) -> None:
        _prepare_import()
        super().__init__(
            config=_deepspeed_config(stage, autocast, offload_optimizer, persistence_threshold),
            timeout=timedelta(minutes=timeout_minutes),
            process_group_backend=process_group_backend,
        )
        self.autocast, self.offloads_optimizer = autocast, offload_optimizer
        self._gathered: list[Any] = []

    @property
    def parallel_devices(self) -> list[torch.device] | None:
        """The devices of this node."""
        return self._parallel_devices

    @parallel_devices.setter
    def parallel_devices(self, devices: list[torch.device] | None) -> None:
        """DeepSpeed wants each device's number; Lightning's CPU devices have none."""
        if devices and devices[0].type == "cpu":
            devices = [torch.device("cpu", i) for i in range(len(devices))]
        self._parallel_devices = devices

    def setup_environment(self) -> None:
        """As Lightning's, which refuses CPUs."""
        _join(self)
        if isinstance(self.accelerator, CPUAccelerator):
            log.warning("DeepSpeed on a CPU is for tests: it saves nothing and is slow")
            super(DeepSpeedStrategy, self).setup_environment()
        else:
            super().setup_environment()

    def on_validation_start(self) -> None:
        """Gather all parameters: processes may hold unequal numbers of evaluation batches.

        DeepSpeed's hooks, which gather module by module and compare the processes' ways through
        the model, are taken off meanwhile.
        """
        if not self.zero_stage_3:
            return
        assert self.lightning_module is not None
        held: list[Any] = [p for p in self.lightning_module.parameters() if hasattr(p, "ds_id")]
        self._gathered = [p for p in held if p.ds_status.name == "NOT_AVAILABLE"]
        if self._gathered:
            self._gathered[0].all_gather(self._gathered)
        offload = self._offload()
        offload._remove_module_hooks()
        offload.forward_hooks, offload.backward_hooks = [], []

    def on_validation_end(self) -> None:
        """Let go of those that were not there before."""
        if not self.zero_stage_3:
            return
        self._offload().setup_zero_stage3_hooks()
        for parameter in self._gathered:
            parameter.partition()
        self._gathered = []

    def _offload(self) -> Any:
        """What gathers parameters; without an optimiser it stands in its place."""
        optimizer = self.deepspeed_engine.optimizer
        return getattr(optimizer, "parameter_offload", optimizer)

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        """As Lightning's; a checkpoint of another number of processes is converted first.

        Raises:
            UserError: it is not one of DeepSpeed's.
        """
        universal = self._converted(Path(checkpoint_path))
        self.deepspeed_engine._config.load_universal_checkpoint = universal is not None
        return super().load_checkpoint(universal or checkpoint_path, weights_only)

    def _converted(self, path: Path) -> Path | None:
        """A folder that any number of processes can load; None if the checkpoint's own is right."""
        shards = zero_processes(path)
        if shards is None:
            raise UserError(
                f"{path}: is no checkpoint of DeepSpeed's, so the run cannot go on under ZeRO; its "
                "weights can: begin another run with --init_from"
            )
        if shards == self.world_size:
            return None
        target = path.resolve().with_name(f"{path.resolve().name}-any")
        if self.is_global_zero and not (target / "latest_universal").is_file():
            log.info("%s is of %d processes, now there are %d", path, shards, self.world_size)
            to_universal(path, target)
        self.barrier()
        return target

    def prepare(self, model: nn.Module) -> None:
        """Lay parameters out as DeepSpeed's flat buffers need them.

        Stage 3 gathers what a module owns when it is called; what our modules read of those
        inside them (``borrowed_parameters``) it must be told.
        """
        from deepspeed import zero

        model.to(memory_format=torch.contiguous_format)
        if self.zero_stage_3:
            for module in model.modules():
                for parameter in getattr(module, "borrowed_parameters", tuple)():
                    zero.register_external_parameter(module, parameter)


def saves_folders(strategy: Strategy) -> bool:
    """Whether a checkpoint is a folder, one file or more a process."""
    match strategy:
        case FSDP():
            return strategy.sharded_checkpoints
        case _:
            return isinstance(strategy, DeepSpeedStrategy)


def _join(strategy: DDP | FSDP | ZeRO) -> None:
    assert strategy.accelerator is not None
    strategy.accelerator.setup_device(strategy.root_device)
    join_group(
        strategy._get_process_group_backend(),
        device=strategy.root_device,
        timeout=strategy._timeout or timedelta(minutes=30),
    )


def _prepare_import() -> None:
    """Import DeepSpeed without compiling anything that is not needed.

    Raises:
        UserError: it is not installed.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
    except ImportError:
        raise UserError(
            "trainer.strategy: ZeRO needs DeepSpeed: pip install 'gmf_platform[deepspeed]'"
        ) from None
    if not torch.cuda.is_available():
        # A collective through shared memory, compiled for half a minute on first use.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _deepspeed_config(
    stage: int, autocast: str, offload_optimizer: bool, persistence_threshold: int
) -> dict[str, Any]:
    zero: dict[str, Any] = {
        "stage": stage,
        "contiguous_gradients": True,
        "overlap_comm": torch.cuda.is_available(),
    }
    if stage == 3:
        zero["stage3_param_persistence_threshold"] = persistence_threshold
    if offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    config: dict[str, Any] = {
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
    }
    if autocast != "none":
        config["torch_autocast"] = {"enabled": True, "dtype": autocast}
    return config
