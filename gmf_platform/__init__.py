"""Train, evaluate and ship GroupMixFormer."""

from gmf_platform._own_datamodules import pin_datamodules
from gmf_platform.errors import UserError

__all__ = ["UserError", "__version__"]

__version__ = "0.1.0"

pin_datamodules()
