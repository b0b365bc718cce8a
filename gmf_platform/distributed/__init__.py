"""What makes many processes give the result of one."""

from gmf_platform.distributed.order import (
    BatchPlan,
    EvalBatches,
    SampleKey,
    SampleOrder,
    TrainBatches,
    plan_batches,
)

__all__ = [
    "BatchPlan",
    "EvalBatches",
    "SampleKey",
    "SampleOrder",
    "TrainBatches",
    "plan_batches",
]
