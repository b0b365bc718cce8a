"""Keep a user's own folder called ``datamodules`` from shadowing ours.

``python -m`` puts the current folder first on the path, and ``datamodules`` is a name that many
projects use. Ours is the one beside this package.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

__all__ = ["pin_datamodules"]


def pin_datamodules() -> None:
    """Import the ``datamodules`` package that stands beside ``gmf_platform``."""
    home = Path(__file__).resolve().parent.parent / "datamodules"
    loaded = sys.modules.get("datamodules")
    if loaded is not None:
        if Path(loaded.__file__ or "").parent != home:
            raise ImportError(
                f"another package called datamodules is loaded, {loaded.__file__}: import "
                "gmf_platform before it"
            )
        return
    spec = spec_from_file_location(
        "datamodules", home / "__init__.py", submodule_search_locations=[str(home)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"the package datamodules is not beside gmf_platform, at {home}")
    module = module_from_spec(spec)
    sys.modules["datamodules"] = module
    spec.loader.exec_module(module)
