"""What a worker does: read a unit of shards, commit its partial. Tasks carry URLs and numbers, never arrays."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch

from tilecov.storage.listing import Shard
from tilecov.storage.objects import Folder
from tilecov.storage.partials import Partial
from tilecov.storage.runs import RunFolder
from tilecov.storage.tiling import Tiling

from .accumulate import Accumulator, FloatAccumulator, IntegerAccumulator, panels_of
from .device import Kernel, choose_device, choose_kernel
from .machine import peak_bytes
from .reading import BlockReader, Reading, ShardTally
from .rows import RowSpec

Progress = Callable[[int, int], None]
"""Called with (shards, rows) that were done since the last call."""


@dataclass(frozen=True)
class UnitTask:
    """One unit of shards to read.

    Parameters
    ----------
    run : str
        URL of the run folder.
    stage, name : str
        Under which the task commits.
    shards : tuple of Shard
    spec : RowSpec
    tile, block_rows, threads : int
    skip : bool
        Whether bad samples are left out.
    device : str
    origin : dict or None
        For float rows: where the mean of the first pass is (a Partial's record and folder).
    options, run_options : mapping
        For fsspec.
    """

    run: str
    stage: str
    name: str
    shards: tuple[Shard, ...]
    spec: RowSpec
    tile: int
    block_rows: int
    threads: int
    skip: bool
    device: str
    origin: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return RunFolder(Folder(self.run, self.options))

    def reader(self, progress: Callable[[int], None] | None) -> BlockReader:
        """Return the blocks of this unit."""
        reading = Reading(self.spec, self.block_rows, self.threads, self.skip, self.options)
        return BlockReader(self.shards, reading, progress)


@cache
def kernel_of(device: str) -> Kernel:
    """Return the device's proven kernel; the proof runs once a process."""
    return choose_kernel(choose_device(device))


def read_unit(task: UnitTask, progress: Progress | None = None) -> dict[str, Any]:
    """Read a unit and commit its moments; return the commit record."""
    started = time.perf_counter()
    run = task.folder
    prefix = run.fresh(task.stage, task.name)
    partial = Partial(run.folder(prefix))
    tiling = Tiling(task.spec.size, task.tile)
    accumulator = _accumulator(task, tiling)
    reader = task.reader(None if progress is None else lambda shards: progress(shards, 0))
    parts: list[dict[str, Any]] = []
    for block in reader:
        if not len(block):
            continue
        if accumulator.room() < len(block):
            parts.append(_write_part(partial, len(parts), accumulator))
        accumulator.add(panels_of(torch.from_numpy(block), tiling))
        if progress is not None:
            progress(0, len(block))
    if accumulator.count:
        parts.append(_write_part(partial, len(parts), accumulator))
    return _commit(task, prefix, started, reader.tallies, {"parts": parts})


def _accumulator(task: UnitTask, tiling: Tiling) -> Accumulator:
    if task.origin is None:
        return IntegerAccumulator(tiling, tiling.upper(), kernel_of(task.device))
    origin = Partial(task.folder.folder(task.origin["prefix"])).read(task.origin["mean"])
    return FloatAccumulator(tiling, tiling.upper(), torch.tensor(origin), choose_device(task.device))


def _write_part(partial: Partial, index: int, accumulator: Accumulator) -> dict[str, Any]:
    count, sums, tiles = accumulator.take()
    written = [[i, j, partial.write(f"{index}/{i}-{j}", tile)] for (i, j), tile in tiles]
    return {"count": count, "sum": partial.write(f"{index}/sum", sums), "tiles": written}


def sum_unit(task: UnitTask, progress: Progress | None = None) -> dict[str, Any]:
    """Read a unit of float rows for the first pass and commit its count and sum, in float64."""
    started = time.perf_counter()
    run = task.folder
    prefix = run.fresh(task.stage, task.name)
    count, total = 0, np.zeros(task.spec.size)
    reader = task.reader(None if progress is None else lambda shards: progress(shards, 0))
    for block in reader:
        total += block.sum(axis=0, dtype=np.float64)
        count += len(block)
        if progress is not None:
            progress(0, len(block))
    record = Partial(run.folder(prefix)).write("sum", total)
    return _commit(task, prefix, started, reader.tallies, {"count": count, "sum": record})


def _commit(
    task: UnitTask, prefix: str, started: float, tallies: list[ShardTally], result: dict[str, Any]
) -> dict[str, Any]:
    record = {
        "prefix": prefix,
        "ledger": [tally.as_dict() for tally in tallies],
        "seconds": round(time.perf_counter() - started, 3),
        "peak_memory": peak_bytes(),
        **result,
    }
    task.folder.commit(task.stage, task.name, record)
    return record
