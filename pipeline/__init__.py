"""The public API of tilecov.

from tilecov.pipeline import (
compute_wiener_filter, save_wiener_filter, load_wiener_filter, WienerFilter, UNet, Job, plan, run)
"""

import importlib
from typing import TYPE_CHECKING, Any

from .job import Job
from .plan import plan
from .run import run

if TYPE_CHECKING:
    from .moments import Moments as Moments
    from .unet import UNet as UNet
    from .unet import load_unet as load_unet
    from .wiener import WienerFilter as WienerFilter
    from .wiener import compute_wiener_filter as compute_wiener_filter
    from .wiener import load_wiener_filter as load_wiener_filter
    from .wiener import save_wiener_filter as save_wiener_filter

# torch takes over a second to import; the command line's help and status do without it.
_LATER = {
    "Moments": "moments",
    "UNet": "unet",
    "WienerFilter": "wiener",
    "compute_wiener_filter": "wiener",
    "load_unet": "unet",
    "load_wiener_filter": "wiener",
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
