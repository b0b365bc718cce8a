"""Train, evaluate and ship GroupMixFormer.

    import gmf_platform

    model = gmf_platform.load("runs/seg_ade20k")
    result = model.predict("photo.jpg")

`load` is imported on first use, so that importing the package takes no time.
"""

from typing import TYPE_CHECKING, Any

from gmf_platform._own_datamodules import pin_datamodules
from gmf_platform.errors import UserError

if TYPE_CHECKING:
    from gmf_platform.deploy.trained import load

__all__ = ["UserError", "__version__", "load"]

__version__ = "0.1.0"

pin_datamodules()


def __getattr__(name: str) -> Any:
    if name != "load":
        raise AttributeError(f"module 'gmf_platform' has no attribute {name!r}")
    from gmf_platform.deploy.trained import load

    return load
