"""What makes many processes give the result of one."""

from gmf_platform.distributed.order import (
    BatchPlan,
    EvalBatches,
    SampleKey,
    SampleOrder,
    TrainBatches,
    plan_batches,
)
from gmf_platform.distributed.strategies import DDP, FSDP, ZeRO

__all__ = [
    "DDP",
    "FSDP",
    "BatchPlan",
    "EvalBatches",
    "SampleKey",
    "SampleOrder",
    "TrainBatches",
    "ZeRO",
    "plan_batches",
]
