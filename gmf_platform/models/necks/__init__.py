"""Necks: from a backbone's feature maps to maps that a head takes."""

from gmf_platform.models.necks.fpn import FPN

__all__ = ["FPN"]
