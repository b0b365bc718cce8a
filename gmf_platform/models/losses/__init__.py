"""Losses of dense prediction."""

from gmf_platform.models.losses.segmentation import CrossEntropy

__all__ = ["CrossEntropy"]
