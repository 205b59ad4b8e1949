"""The task of the blocked method's last stage: a slab of eigenvectors, made and written by itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tilecov.storage.runs import STATISTICS, WORK
from tilecov.storage.tiles import TileMatrix, open_group
from tilecov.storage.tiling import Tiling

from .device import choose_device
from .svd import direct
from .svd.blocked import Blocked
from .tasks import Progress, Record, Task, begin

SPECTRUM = f"{WORK}/spectrum"
"""Where the parts of a blocked decomposition lie in a run."""


@dataclass(frozen=True, kw_only=True)
class SlabTask(Task):
    """Some tile columns of the eigenvectors.

    Parameters
    ----------
    start, stop : int
        Which eigenvectors: whole tile columns, but for the last one.
    step : int
        Eigenvectors that memory was kept for at a time.
    width : int
        b, the half-width of the band.
    precision : str
        float32 or float64.
    record : mapping
        What the tridiagonal stage committed.
    """

    start: int
    stop: int
    step: int
    width: int
    precision: str
    record: Mapping[str, Any]


def make_slab(task: SlabTask, progress: Progress | None = None) -> Record:
    """Make and write the eigenvectors of some tile columns, a slab at a time; return the commit record."""
    started = begin()
    dtype = torch.float64 if task.precision == "float64" else torch.float32
    size = task.spec.size
    blocked = Blocked(task.folder.folder(SPECTRUM), size, task.width, dtype, choose_device(task.device))
    spectrum = blocked.spectrum(task.record)
    target = TileMatrix.open(open_group(task.folder.folder(STATISTICS), writable=True), "eigenvectors")
    for part in Tiling(task.stop - task.start, task.step).spans():
        columns = slice(task.start + part.start, task.start + part.stop)
        vectors = blocked.vectors(task.record, spectrum, columns)
        direct.orient(vectors)
        target.write_columns(columns, vectors.numpy())
        if progress is not None:
            progress(columns.stop - columns.start, 0)
    task.folder.folder(STATISTICS).sync()
    return task.commit(started, {"columns": task.stop - task.start})
