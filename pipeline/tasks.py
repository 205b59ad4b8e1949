"""What workers do: read a unit of shards, sum a group of tiles. Tasks carry URLs and numbers, never arrays."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tilecov.storage.listing import Shard
from tilecov.storage.objects import Folder
from tilecov.storage.partials import DamagedTileError, Partial
from tilecov.storage.runs import MOMENTS, RunFolder
from tilecov.storage.stagedrows import StagedRows
from tilecov.storage.tiles import TileMatrix, open_group
from tilecov.storage.tiling import Tiling

from .accumulate import IntegerAccumulator, Pair, Workspace, panels_of
from .ahead import ahead
from .bounds import ORIGIN
from .costs import BLOCKS
from .decoders import ANY_PICTURE, PictureBudget
from .device import choose_device, kernel_of
from .errors import TooManyGroupsError
from .floatsums import Accumulator, FloatAccumulator
from .machine import peak_bytes, reset_peak
from .moments import block_hashes
from .momentstore import MomentsStore
from .norms import NormsSum
from .reading import BlockReader, Empty, Reading, ShardTally
from .rows import RowSpec
from .transfer import host_block, let_go, sender_to

Progress = Callable[[int, int], None]
"""Called with (shards or tiles, rows) that were done since the last call."""
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every task needs.

    Parameters
    ----------
    run : str
        URL of the run folder.
    stage, name : str
        Under which the task commits.
    spec : RowSpec
    tile : int
    device : str
    kernel : str
        What memory was planned for: int8 or float32; empty where the worker chooses the faster one.
    origin : dict or None
        For float rows: where the origin is (a Partial's record and folder).
    options : mapping
        For fsspec.
    """

    run: str = field(repr=False)  # the URL may hold a password, and Dask logs the tasks that fail
    stage: str
    name: str
    spec: RowSpec
    tile: int
    device: str
    kernel: str = ""
    origin: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return RunFolder(Folder(self.run, self.options))

    @property
    def tiling(self) -> Tiling:
        """How the columns are cut."""
        return Tiling(self.spec.size, self.tile)

    def accumulator(
        self, pairs: Iterator[Pair], *, wide: bool = False, block: int = 0, workspace: Workspace | None = None
    ) -> Accumulator:
        """Return an empty accumulator of these tiles, for rows of this kind."""
        if self.spec.kind == "uint8":
            kernel = kernel_of(self.device, self.kernel)
            return IntegerAccumulator(self.tiling, pairs, kernel, wide=wide, block=block, workspace=workspace)
        if self.origin is None:
            raise ValueError("float rows are summed about an origin and none was given")
        origin = Partial(self.folder.folder(self.origin["prefix"])).read(self.origin["mean"])
        return FloatAccumulator(self.tiling, pairs, torch.tensor(origin), choose_device(self.device))

    def commit(self, started: float, record: Record) -> Record:
        """Make the task's result count; return the record that does, which is another attempt's if that was first."""
        seconds = round(time.perf_counter() - started, 3)
        kept = self.folder.commit(self.stage, self.name, {"seconds": seconds, "peak_memory": peak_bytes(), **record})
        if "prefix" in record and kept["prefix"] != record["prefix"]:
            self.folder.root.remove(record["prefix"])
        return kept


@dataclass(frozen=True, kw_only=True)
class UnitTask(Task):
    """One unit of shards to read.

    Parameters
    ----------
    shards : tuple of Shard
    block_rows, threads : int
    skip : bool
        Whether bad samples are left out.
    max_groups : int
        Sets of moments that memory was kept for.
    pictures : PictureBudget
        Pictures that memory was kept for.
    forked : bool
        Whether decoders are processes.
    blocks : int
        Blocks of rows in flight where they are multiplied.
    """

    shards: tuple[Shard, ...]
    block_rows: int
    threads: int
    skip: bool
    max_groups: int = 1
    pictures: PictureBudget = ANY_PICTURE
    forked: bool = False
    blocks: int = 1

    def reader(self, progress: Progress | None, blocks: int = BLOCKS, empty: Empty = np.empty) -> BlockReader:
        """Return the blocks of this unit, arrays made by ``empty``."""
        reading = Reading(
            self.spec, self.block_rows, self.threads, self.skip, self.pictures, self.options, blocks, self.forked, empty
        )  # fmt: skip
        return BlockReader(self.shards, reading, None if progress is None else lambda shards: progress(shards, 0))


@dataclass(frozen=True, kw_only=True)
class TilesTask(Task):
    """One group of tiles to sum from staged rows.

    Parameters
    ----------
    left, right : (int, int)
        Ranges of tile rows and tile columns.
    staged : tuple of dict
        The commit records of the units that staged the rows.
    wide : bool
    sources : tuple of str
        URLs of finished runs whose moments are taken over.
    """

    left: tuple[int, int]
    right: tuple[int, int]
    staged: tuple[Mapping[str, Any], ...]
    wide: bool
    sources: tuple[str, ...] = ()

    def pairs(self) -> Iterator[Pair]:
        """Yield the upper tiles of the group."""
        return ((i, j) for i in range(*self.left) for j in range(*self.right) if i <= j)


def read_unit(task: UnitTask, progress: Progress | None = None) -> Record:
    """Read a unit and commit its moments, a part for each group; return the commit record."""
    started = begin()
    prefix = task.folder.fresh(task.stage, task.name)
    parts = _Parts(task, Partial(task.folder.folder(prefix)))
    ledger = _add_blocks(task, parts, progress)
    let_go()
    return task.commit(started, {"prefix": prefix, "ledger": ledger, "parts": parts.finish()})


def _add_blocks(task: UnitTask, parts: "_Parts", progress: Progress | None) -> list[Record]:
    """Add all rows of a unit to its parts; return its ledger."""
    # The rows of a group are copied together first, from where a device could fetch them no faster.
    empty = np.empty if task.spec.grouping else partial(host_block, device=choose_device(task.device))
    reader = task.reader(progress, task.blocks, empty)
    for block, labels in reader:
        for label in sorted(set(labels)) if labels else [""]:
            rows = block[np.array([found == label for found in labels])] if labels else block
            parts.add(label, rows)
        if progress is not None:
            progress(0, len(block))
    return _ledger(reader.tallies)


class _Parts:
    """The accumulators of a unit, one a group; written out where they are full and at the end."""

    def __init__(self, task: UnitTask, partial: Partial) -> None:
        self._task, self._partial = task, partial
        self._sums: dict[str, Accumulator] = {}
        self._norms: dict[str, NormsSum] = {}
        self._written: list[Record] = []
        self._workspace = Workspace()  # of all groups, as the plan counts it
        self._sent = sender_to(choose_device(task.device))

    def add(self, label: str, rows: npt.NDArray[Any]) -> None:
        accumulator = self._sums.get(label) or self._begin(label)
        if accumulator.room() < len(rows):
            self._write(label, accumulator)
        with self._sent(torch.from_numpy(rows)) as there:
            accumulator.add(panels_of(there, self._task.tiling))
        if self._task.spec.kind == "uint8":
            self._norms.setdefault(label, NormsSum(self._task.spec.size)).add(rows)

    def _begin(self, label: str) -> Accumulator:
        if len(self._sums) >= self._task.max_groups:
            raise TooManyGroupsError(
                f"group {label!r} is the {len(self._sums) + 1}th and memory was kept for {self._task.max_groups}; "
                "raise --max-groups, or choose a coarser --group-by"
            )
        self._sums[label] = self._task.accumulator(
            self._task.tiling.upper(), block=self._task.block_rows, workspace=self._workspace
        )
        return self._sums[label]

    def _write(self, label: str, accumulator: Accumulator) -> None:
        number = len(self._written)
        count, sums, tiles = accumulator.take()
        records = self._partial.write_all((f"{number}/{i}-{j}", tile) for (i, j), tile in tiles)
        written = [[i, j, record] for (i, j), record in zip(self._task.tiling.upper(), records, strict=True)]
        record = {"group": label, "count": count, "sum": self._partial.write(f"{number}/sum", sums), "tiles": written}
        if label in self._norms:
            record["norms"] = self._norms.pop(label).total().write(self._partial, f"{number}/third")
        self._written.append(record)

    def finish(self) -> list[Record]:
        for label, accumulator in sorted(self._sums.items()):
            if accumulator.count:
                self._write(label, accumulator)
        return self._written


def sum_unit(task: UnitTask, progress: Progress | None = None) -> Record:
    """Read a unit of float rows for the first pass and commit its count and sum, in float64."""
    started = begin()
    prefix = task.folder.fresh(task.stage, task.name)
    count, total = 0, np.zeros(task.spec.size)
    reader = task.reader(progress)
    for block, _ in reader:
        total += block.sum(axis=0, dtype=np.float64)
        count += len(block)
        if progress is not None:
            progress(0, len(block))
    record = Partial(task.folder.folder(prefix)).write("sum", total)
    return task.commit(started, {"prefix": prefix, "ledger": _ledger(reader.tallies), "count": count, "sum": record})


def stage_unit(task: UnitTask, progress: Progress | None = None) -> Record:
    """Decode a unit once into staged rows; commit them with their count and their sum, int64 or float64."""
    started = begin()
    prefix = task.folder.fresh(task.stage, task.name)
    folder = task.folder.folder(prefix)
    rows = StagedRows.create(folder.folder("rows"), task.spec.size, task.block_rows, task.tile, task.spec.kind)
    exact = task.spec.kind == "uint8"
    count, total = 0, np.zeros(task.spec.size, np.int64 if exact else np.float64)
    norms = NormsSum(task.spec.size)
    reader = task.reader(progress)
    for block, _ in reader:
        rows.append(block)
        total += block.sum(axis=0, dtype=total.dtype)
        if exact:
            norms.add(block)
        count += len(block)
        if progress is not None:
            progress(0, len(block))
    folder.sync()
    partial = Partial(folder)
    record: Record = {"prefix": prefix, "count": count, "sum": partial.write("sum", total)}
    if exact:
        record["norms"] = norms.total().write(partial, "third")
    return task.commit(started, {**record, "ledger": _ledger(reader.tallies)})


def sum_tiles(task: TilesTask, progress: Progress | None = None) -> Record:
    """Sum a group of tiles over all staged rows, write them, and commit the hashes of their digest blocks.

    Raises
    ------
    DamagedTileError
        Where the rows read do not add up to what was staged.
    """
    started = begin()
    accumulator = task.accumulator(task.pairs(), wide=task.wide)
    for panels in ahead(_panels(task, accumulator.columns)):
        accumulator.add(panels)
        del panels
    columns = accumulator.columns
    _, sums, tiles = accumulator.take()
    _check_sums(task, columns, sums)
    before = [MomentsStore.open(RunFolder(Folder(url, task.options))).gram for url in task.sources]
    gram = TileMatrix.open(open_group(task.folder.folder(MOMENTS), writable=True), "gram")
    hashes = {}
    for (i, j), tile in tiles:
        whole = np.sum([tile.astype(gram.dtype, copy=False), *(taken.read(i, j) for taken in before)], axis=0)
        gram.write(i, j, whole)
        hashes.update({f"{a}-{b}": found.hex() for (a, b), found in block_hashes(task.tiling, i, j, whole)})
        if progress is not None:
            progress(1, 0)
    return task.commit(started, {"tiles": len(list(task.pairs())), "hashes": hashes})


def _panels(task: TilesTask, columns: list[int]) -> Iterator[dict[int, torch.Tensor]]:
    """Yield the staged columns that the group needs, a block of rows at a time."""
    for record in task.staged:
        rows = StagedRows.open(task.folder.folder(record["prefix"]).folder("rows"))
        for span in rows.blocks():
            yield {j: torch.from_numpy(rows.read(span, task.tiling.span(j))) for j in columns}


def _check_sums(task: TilesTask, columns: list[int], found: npt.NDArray[Any]) -> None:
    """Compare the sums of the columns read with those committed when they were staged."""
    count = sum(record["count"] for record in task.staged)
    total = np.sum(
        [Partial(task.folder.folder(record["prefix"])).read(record["sum"]) for record in task.staged], axis=0
    )
    if task.origin is None:
        centred = total - ORIGIN * count
    else:
        centred = total - count * Partial(task.folder.folder(task.origin["prefix"])).read(task.origin["mean"])
    expected = np.concatenate([centred[task.tiling.span(j)] for j in columns])
    allowed = 0 if task.origin is None else 1e-9 * (1 + np.abs(total).max())
    if np.abs(found - expected).max() > allowed:
        raise DamagedTileError(
            f"staged rows of {task.folder.url} are damaged: their columns do not add up to what was staged"
        )


def begin() -> float:
    """Start measuring a task's memory and time; return the time."""
    reset_peak()
    return time.perf_counter()


def _ledger(tallies: list[ShardTally]) -> list[Record]:
    return [tally.as_dict() for tally in tallies]
