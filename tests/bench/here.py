"""Where it was measured."""

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

SHOWN = ("tilecov", "torch", "numpy", "scipy", "Pillow", "imagecodecs", "webdataset", "litdata", "scikit-learn",
         "scikit-learn-intelex", "dask", "torchmetrics")  # fmt: skip


def machine() -> str:
    """Return what a reader must know of the machine and of the versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    number = next((line.partition(": ")[2] for line in lines if line.startswith("model\t")), "?")
    versions = []
    for name in SHOWN:
        with suppress(PackageNotFoundError):  # peers are only in the environment of the bench
            versions.append(f"{name} {version(name)}")
    where = f"{os.cpu_count()} cores of {model} (model {number}); Python {platform.python_version()}"
    return f"{where}; {', '.join(versions)}."
