"""Plan: how a job will be done, and what it will take. Arithmetic only: it reads and writes nothing."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import import_module
from threading import Thread
from typing import TYPE_CHECKING, Any

from tilecov.storage.listing import list_shards

from .costs import CERTIFICATE_BYTES, DECODE_BYTES, KEEPING, SPARE, Costs, StagePlan, tile_of, tiles_of, upper_entries
from .errors import DoesNotFitError
from .executors import measure_for
from .job import Job
from .machine import DEFAULT_SHARE, Machine
from .methods import Methods
from .sizes import show_size

if TYPE_CHECKING:
    from .facts import DatasetFacts

BLOCK_ROWS = (8192, 4096, 2048, 1024, 512, 256, 128, 64, 32, 16, 8)
BLOCK_BYTES = 32 << 20
"""Of a block of more than 4,096 rows: small pictures stop less often for the products, large ones need no more."""
RESIDENT_ROWS = 256
"""Smaller blocks are multiplied so slowly that staged rows are the better way."""
UNIT_SECONDS = 30.0
"""Work that a crash may cost; long against the writing of its partial."""

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Plan:
    """How a job will be done; ``stages`` in the order in which they run.

    Parameters
    ----------
    size, tile : int
        d and the tile.
    strategy : str
        resident, staged, or none where moments come from other runs alone.
    block_rows : int
        Rows multiplied at a time.
    decode_threads : int
    units : tuple of (int, int)
        Ranges of shards that one task reads and commits.
    tile_groups : tuple of ((int, int), (int, int))
        Staged: ranges of tile rows and tile columns that one task sums.
    wide : bool
        Staged: whether tiles are summed in int64.
    usual_pixels, large_pixels : int
        Pixels of a picture that every decode thread may hold; of one larger picture on top, by the memory left.
    method, precision, reason : str
        Of the decomposition; why, in one line.
    band_width, slab, spectrum_bytes : int
        Half-width of the blocked method's band; eigenvectors that it makes at a time; bytes that the arrays of a method
        may take which can make do with less.
    memory : int
        The ceiling of each process, bytes.
    stages : tuple of StagePlan
    kernel : str
        What multiplies uint8 rows: int8 or float32; empty where each worker chooses for itself.
    forked : bool
        Whether decoders are processes and not threads.
    band_bytes : int
        Bytes that U or bands of it may take for the certificate.
    kept_bytes : int
        Bytes of tiles that the randomized method keeps from pass to pass.
    blocks : int
        Resident: blocks of rows in flight. With one, decoding waits while the products run.
    """

    size: int
    tile: int
    strategy: str
    block_rows: int
    decode_threads: int
    units: tuple[Span, ...]
    tile_groups: tuple[tuple[Span, Span], ...]
    wide: bool
    usual_pixels: int
    large_pixels: int
    method: str
    precision: str
    reason: str
    band_width: int
    slab: int
    spectrum_bytes: int
    memory: int
    stages: tuple[StagePlan, ...]
    kernel: str = ""
    forked: bool = False
    band_bytes: int = CERTIFICATE_BYTES
    kept_bytes: int = 0
    blocks: int = 1

    @property
    def seconds(self) -> float:
        """Predicted time in all."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def peak(self) -> int:
        """Predicted peak memory of a process, bytes."""
        return max(stage.memory for stage in self.stages)

    @property
    def disk(self) -> int:
        """Predicted bytes in the run folder at the most."""
        return sum(stage.disk for stage in self.stages)

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as JSON takes it."""
        return asdict(self)

    @classmethod
    def load(cls, stored: Mapping[str, Any]) -> "Plan":
        """Return the plan that ``as_dict`` gave."""
        stages = tuple(StagePlan(**stage) for stage in stored["stages"])
        units = tuple((first, last) for first, last in stored["units"])
        groups = tuple(((a, b), (c, d)) for (a, b), (c, d) in stored["tile_groups"])
        return cls(**{**stored, "stages": stages, "units": units, "tile_groups": groups})


def plan(job: Job, facts: "DatasetFacts | None" = None, machine: Machine | None = None) -> Plan:
    """Choose how ``job`` is done with a dataset like ``facts`` on ``machine``: a pure function of the three.

    Facts that are not given are gathered first: the shards are listed, a few samples read, and the machine measured.

    Raises
    ------
    DoesNotFitError
        Where no way keeps inside the memory or the disk; names both sizes and the option to change.
    """
    facts = facts or _gather(job)
    machine = machine or measure_for(job, job.out)
    costs = Costs(job, facts, machine)
    sharing = 1 if machine.workers else job.workers  # workers of a scheduler have each their own memory
    chosen = _Choice(costs, job.memory or int(machine.memory * DEFAULT_SHARE / sharing))
    planned = chosen.plan()
    if machine.disk_free is not None and planned.disk > machine.disk_free:
        raise DoesNotFitError(
            f"the run needs {show_size(planned.disk)} of disk and {show_size(machine.disk_free)} are free; choose "
            "another --out, a smaller --resolution or --rank"
        )
    return planned


def _gather(job: Job) -> "DatasetFacts":
    # The import of torch takes seconds, and so does a long listing: the one need not wait for the other.
    importing = Thread(target=import_module, args=("torch",))
    importing.start()
    try:
        shards = list_shards(job.shards, job.storage_options)
    finally:
        importing.join()
    from .facts import inspect

    return inspect(job, shards)


def make_units(sizes: Sequence[int], target: int, workers: int) -> tuple[Span, ...]:
    """Cut shards of these sizes into consecutive units of about ``target`` bytes, at least one a worker if possible."""
    if not sizes:
        return ()
    target = max(1, min(target, sum(sizes) // workers))
    units, start, weight = [], 0, 0
    for index, size in enumerate(sizes):
        if index > start and weight + size / 2 > target:
            units.append((start, index))
            start, weight = index, 0
        weight += size
    return (*units, (start, len(sizes)))


def make_groups(tiles: int, side: int) -> Iterator[tuple[Span, Span]]:
    """Yield the groups of upper tiles, each (a range of tile rows, a range of tile columns) of at most ``side``."""
    spans = [(start, min(start + side, tiles)) for start in range(0, tiles, side)]
    return ((left, right) for index, left in enumerate(spans) for right in spans[index:])


@dataclass(frozen=True)
class _Choice:
    """The decisions, each with what it costs."""

    costs: Costs
    allowed: int

    def plan(self) -> Plan:
        costs, job = self.costs, self.costs.job
        chosen = Methods(costs, self.allowed).choose()
        units = make_units([shard.size for shard in costs.facts.shards], self._unit_bytes(), self._workers)
        strategy, block, side = self._strategy(chosen.method) if units else ("none", 0, 0)
        groups = tuple(make_groups(tiles_of(job.size), side)) if strategy == "staged" and job.covariance else ()
        bands = CERTIFICATE_BYTES
        stages = self._reading(strategy, block, side, groups, len(units))
        stages.append(costs.merge(len(units) + 1) if strategy != "staged" else costs.gather())
        stages += [costs.augment()] if job.augment else []
        stages.append(costs.statistics())
        if chosen.stages:
            rank = min(costs.rank, costs.facts.samples) if chosen.method == "dual" else costs.rank
            certificate, bands = costs.certificate(rank, self.allowed)
            stages += [*chosen.stages, costs.artifacts(rank), certificate]
        for stage in stages:
            if stage.memory > self.allowed:
                raise self._refusal(f"the stage '{stage.name}' needs", stage.memory)
        stages = [replace(stage, keeps_freed=self._keeps(stage, chosen.method)) for stage in stages]
        return Plan(
            job.size, tile_of(job.size), strategy, block, costs.threads, units, groups, costs.wide,
            costs.usual_pixels, max(0, self.allowed - stages[0].memory) // DECODE_BYTES,
            chosen.method, chosen.precision, chosen.reason, chosen.width, chosen.slab, chosen.budget, self.allowed,
            tuple(stages), costs.machine.kernel, costs.forked, bands, chosen.kept, costs.blocks_multiplied,
        )  # fmt: skip

    def _keeps(self, stage: StagePlan, method: str) -> bool:
        """Return whether a stage is one that keeps what it frees: most of its arrays are alike, and memory is left."""
        alike = stage.name in KEEPING and (stage.name != "spectrum" or method == "randomized")
        return alike and stage.memory + SPARE <= self.allowed

    @property
    def _workers(self) -> int:
        return max(self.costs.job.workers, self.costs.machine.workers)

    def _reading(self, strategy: str, block: int, side: int, groups: Sequence[Any], units: int) -> list[StagePlan]:
        if strategy == "staged":
            sets = [(range(*left), range(*right)) for left, right in groups]
            stages = self.costs.staging_stages(block, side, sets)
            return stages if self.costs.job.covariance else stages[:1]
        if strategy == "none":
            return []
        return self.costs.reading_stages(block, units)

    def _strategy(self, method: str) -> tuple[str, int, int]:
        """Return strategy, block rows and, for staged, the side of a tile group; dual needs staged rows."""
        job = self.costs.job
        most = max(4096, BLOCK_BYTES // (job.size * self.costs.itemsize))
        wanted = [rows for rows in BLOCK_ROWS if rows <= most and rows < 2 * self.costs.facts.samples]
        wanted = wanted or [BLOCK_ROWS[-1]]
        wanted = [job.block_rows] if job.block_rows else wanted
        least = min(RESIDENT_ROWS, wanted[0]) if job.strategy == "auto" else 1
        resident = self._largest(wanted, self.costs.resident_memory)
        if job.strategy != "staged" and method != "dual" and (job.group_by or (resident and resident >= least)):
            if resident is None:
                raise self._refusal("moments per group need", self.costs.resident_memory(wanted[-1]), "--max-groups")
            return "resident", resident, 0
        if job.strategy == "resident":
            raise self._refusal("the upper tiles and a block of rows need", self.costs.resident_memory(wanted[-1]))
        return self._staged(wanted)

    def _staged(self, wanted: Sequence[int]) -> tuple[str, int, int]:
        sides = range(tiles_of(self.costs.job.size), 0, -1)
        for rows in [rows for rows in wanted if rows <= 1024] or wanted:
            side = self._largest(sides, partial(self.costs.tiles_memory, rows=rows)) if self.costs.job.covariance else 1
            if side:  # as many groups of equal sides take less memory than some of the largest and a rest
                side = -(-len(sides) // -(-len(sides) // side))
            if side and self.costs.rows_memory(rows) <= self.allowed:
                return "staged", rows, side
        least = max(self.costs.rows_memory(wanted[-1]), self.costs.tiles_memory(1, wanted[-1]))
        raise self._refusal("staged rows need", least)

    def _largest(self, choices: Sequence[int] | range, memory: Callable[[int], int]) -> int | None:
        return next((choice for choice in choices if memory(choice) <= self.allowed), None)

    def _refusal(self, what: str, needed: int, option: str = "--resolution, or use --rank 0") -> DoesNotFitError:
        return DoesNotFitError(
            f"{what} {show_size(needed)} and {show_size(self.allowed)} are allowed; "
            f"raise --memory to {show_size(needed)} or more, or lower {option}"
        )

    def _unit_bytes(self) -> int:
        """Bytes of shards that take about UNIT_SECONDS, and thirty times as long as writing their partial."""
        costs = self.costs
        rate = costs.facts.bytes / max(1e-6, costs.product_seconds(), costs.decode_seconds())
        writing = upper_entries(costs.job.size) * 4 * costs.groups / costs.machine.disk
        return int(rate * max(UNIT_SECONDS, 30 * writing))
