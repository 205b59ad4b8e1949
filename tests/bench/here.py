"""Where it was measured."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

SHOWN = ("tilecov", "torch", "numpy", "scipy", "Pillow", "imagecodecs", "webdataset", "litdata", "scikit-learn",
         "scikit-learn-intelex", "dask", "torchmetrics")  # fmt: skip


def machine() -> str:
    """Return what a reader must know of the machine and of the versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    number = next((line.partition(": ")[2] for line in lines if line.startswith("model\t")), "?")
    versions = ", ".join(f"{name} {version(name)}" for name in SHOWN)
    return f"{os.cpu_count()} cores of {model} (model {number}); Python {platform.python_version()}; {versions}."
