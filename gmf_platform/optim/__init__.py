"""Parameter groups, schedules, moving averages."""

from gmf_platform.optim.layers import Layered, freeze_stages, layer_numbers, part_names
from gmf_platform.optim.moving_average import AveragedWeights
from gmf_platform.optim.parameter_groups import parameter_groups, scale_learning_rates
from gmf_platform.optim.schedules import Cosine, MultiStep, Polynomial, Schedule

__all__ = [
    "AveragedWeights",
    "Cosine",
    "Layered",
    "MultiStep",
    "Polynomial",
    "Schedule",
    "freeze_stages",
    "layer_numbers",
    "parameter_groups",
    "part_names",
    "scale_learning_rates",
]
