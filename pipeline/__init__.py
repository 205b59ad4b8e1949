"""The public API of tilecov.

from tilecov.pipeline import (
compute_wiener_filter, save_wiener_filter, load_wiener_filter, WienerFilter, UNet, Job, plan, run)
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .job import Job as Job
    from .moments import Moments as Moments
    from .plan import plan as plan
    from .run import run as run
    from .unet import UNet as UNet
    from .unet import load_unet as load_unet
    from .wiener import WienerFilter as WienerFilter
    from .wiener import compute_wiener_filter as compute_wiener_filter
    from .wiener import load_wiener_filter as load_wiener_filter
    from .wiener import save_wiener_filter as save_wiener_filter

# All of it is imported when it is first asked for: torch takes over a second, pydantic, NumPy and fsspec half a second
# where Python is slow, and the command line's help does without any of them.
_LATER = {
    "Job": "job",
    "Moments": "moments",
    "UNet": "unet",
    "WienerFilter": "wiener",
    "compute_wiener_filter": "wiener",
    "load_unet": "unet",
    "load_wiener_filter": "wiener",
    "plan": "plan",
    "run": "run",
    "save_wiener_filter": "wiener",
}

__all__ = [
    "Job",
    "Moments",
    "UNet",
    "WienerFilter",
    "compute_wiener_filter",
    "load_unet",
    "load_wiener_filter",
    "plan",
    "run",
    "save_wiener_filter",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)


class _Package(ModuleType):
    """A package whose functions ``plan`` and ``run`` are not hidden by the modules of these names."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, but not what importing a module sets where a function has its name."""
        if not (isinstance(value, ModuleType) and name in _LATER):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
