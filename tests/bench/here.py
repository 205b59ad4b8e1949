"""Where it was measured."""

import hashlib
import os
import platform
import subprocess
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


def code() -> dict[str, str]:
    """Return which tilecov it is: a digest of its sources, and the commit where they are those of one."""
    root, digest = Path(__file__).parents[2], hashlib.sha256()
    for path in sorted(path for folder in ("pipeline", "storage") for path in (root / folder).rglob("*.[pch]*")):
        if path.suffix in {".py", ".c", ".h"}:
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return {"sources": digest.hexdigest()[:12], "commit": _commit(root)}


def _commit(root: Path) -> str:
    said = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--exclude=*", "--dirty"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return said.stdout.strip()
