"""Parameter groups and schedules."""

from gmf_platform.optim.parameter_groups import parameter_groups
from gmf_platform.optim.schedules import Polynomial, Schedule

__all__ = ["Polynomial", "Schedule", "parameter_groups"]
