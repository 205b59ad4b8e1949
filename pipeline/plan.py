"""Plan: how a job will be done, and what it will take. Arithmetic only: it reads and writes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from .errors import DoesNotFitError
from .job import Job
from .machine import DEFAULT_SHARE, Machine, measure
from .sizes import show_size

if TYPE_CHECKING:
    from .facts import DatasetFacts

TILE = 1024
WHOLE = 1536
"""Up to this many columns the matrix is a single tile."""
BLOCK_ROWS = (4096, 2048, 1024, 512, 256, 128, 64, 32, 16, 8)
UNIT_SECONDS = 30.0
"""Work that a crash may cost; long against the writing of its partial."""
EIGH_FLOPS = 13.0
"""Multiples of d**3, at the rate of a large matrix product, that LAPACK's eigh takes (measured, d = 12,288)."""
LAPACK_LIMIT = 32_767
"""Columns from which LAPACK's 32-bit workspace sizes overflow."""
RUNTIME = 64 << 20
"""Bytes that thread pools, BLAS buffers and the allocator take beside the arrays counted here."""
DECODE_BYTES = 13
"""Bytes a pixel that decoding holds at most: the picture, Pillow's padded RGBX copies and the resized rows."""
CERTIFICATE_BYTES = 256 << 20
"""Bytes that the certificate's bands may take beside a slab of U and a tile."""
TRANSFER = 10 << 20
"""Bytes of encoded samples a decode thread holds at most: two batches and the chunks that they are views of."""


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What one stage takes.

    Parameters
    ----------
    name : str
    memory : int
        Peak bytes of each process, the imports counted in.
    disk : int
        Bytes in the run folder at its end.
    read, written : int
        Bytes.
    requests : int
        Files read and written.
    flops : float
    seconds : float
    """

    name: str
    memory: int
    disk: int
    read: int
    written: int
    requests: int
    flops: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Plan:
    """How a job will be done; ``stages`` in the order in which they run.

    Parameters
    ----------
    size, tile : int
        d and the tile.
    strategy : str
    block_rows : int
        Rows multiplied at a time.
    decode_threads : int
    units : tuple of (int, int)
        Ranges of shards that one task reads and commits.
    method, precision, reason : str
        Of the decomposition; why, in one line.
    memory : int
        The ceiling of each process, bytes.
    stages : tuple of StagePlan
    """

    size: int
    tile: int
    strategy: Literal["resident"]
    block_rows: int
    decode_threads: int
    units: tuple[tuple[int, int], ...]
    method: str
    precision: str
    reason: str
    memory: int
    stages: tuple[StagePlan, ...]

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

    @property
    def band_bytes(self) -> int:
        """Bytes that the certificate's bands may take: what was counted for them."""
        return CERTIFICATE_BYTES

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as JSON takes it."""
        return asdict(self)

    @classmethod
    def load(cls, stored: Mapping[str, Any]) -> "Plan":
        """Return the plan that ``as_dict`` gave."""
        stages = tuple(StagePlan(**stage) for stage in stored["stages"])
        units = tuple((first, last) for first, last in stored["units"])
        return cls(**{**stored, "stages": stages, "units": units})


def plan(job: Job, facts: "DatasetFacts | None" = None, machine: Machine | None = None) -> Plan:
    """Choose how ``job`` is done with a dataset like ``facts`` on ``machine``: a pure function of the three.

    Facts that are not given are gathered first: the shards are listed, a few samples read, and the machine measured.

    Raises
    ------
    DoesNotFitError
        Where no way keeps inside the memory; names both sizes and the option to change.
    """
    if facts is None:
        from .facts import inspect

        facts = inspect(job)
    machine = machine or measure(job.device, job.out)
    allowed = job.memory or int(machine.memory * DEFAULT_SHARE / job.workers)
    arithmetic = _Arithmetic(job, facts, machine, allowed)
    method, precision, reason = arithmetic.choose_method()
    block = arithmetic.choose_block()
    units = make_units([shard.size for shard in facts.shards], arithmetic.unit_bytes(), job.workers)
    stages = arithmetic.stages(block, units, method, precision)
    return Plan(
        job.size,
        tile_of(job.size),
        "resident",
        block,
        arithmetic.threads,
        units,
        method,
        precision,
        reason,
        allowed,
        stages,
    )


def tile_of(size: int) -> int:
    """Return the tile of a matrix with ``size`` columns: a function of d alone, so that runs can be merged."""
    return size if size <= WHOLE else TILE


def upper_entries(size: int) -> int:
    """Return the entries of the upper tiles."""
    tiles = -(-size // tile_of(size))
    return (size * size + sum(min(tile_of(size), size - i * tile_of(size)) ** 2 for i in range(tiles))) // 2


def make_units(sizes: Sequence[int], target: int, workers: int) -> tuple[tuple[int, int], ...]:
    """Cut shards of these sizes into consecutive units of about ``target`` bytes, at least one a worker if possible."""
    target = max(1, min(target, sum(sizes) // workers))
    units, start, weight = [], 0, 0
    for index, size in enumerate(sizes):
        if index > start and weight + size / 2 > target:
            units.append((start, index))
            start, weight = index, 0
        weight += size
    return (*units, (start, len(sizes)))


@dataclass(frozen=True)
class _Arithmetic:
    """Bytes, flops and seconds of each stage."""

    job: Job
    facts: "DatasetFacts"
    machine: Machine
    allowed: int

    @property
    def threads(self) -> int:
        return self.job.decode_threads or max(1, self.machine.cores // self.job.workers)

    @property
    def itemsize(self) -> int:
        return {"uint8": 1, "float32": 4, "float64": 8}[self.facts.kind]

    @property
    def base(self) -> int:
        return self.machine.baseline + RUNTIME

    @property
    def tile_bytes(self) -> int:
        """Bytes of a float64 tile."""
        return tile_of(self.job.size) ** 2 * 8

    @property
    def pairs(self) -> int:
        tiles = -(-self.job.size // tile_of(self.job.size))
        return tiles * (tiles + 1) // 2

    def moments_memory(self, block: int) -> int:
        """Bytes while rows are read and multiplied."""
        gram = upper_entries(self.job.size) * (4 if self.itemsize == 1 else 8)
        rows = block * self.job.size * (2 * self.itemsize + (4 if self.itemsize == 1 else 12))
        squares = 2 * -(-block // 256) * self.job.size * 4 + self.job.size * 4 * min(block, 256)
        decoding = self.threads * (
            TRANSFER + 2 * self.facts.encoded + DECODE_BYTES * max(self.facts.pixels, self.job.resolution**2)
        )
        return self.base + gram + rows + squares + decoding + self.tile_bytes * 2

    def choose_block(self) -> int:
        wanted = (
            [self.job.block_rows]
            if self.job.block_rows
            else [rows for rows in BLOCK_ROWS if rows < 2 * self.facts.samples]
        )
        for rows in wanted or [BLOCK_ROWS[-1]]:
            if self.moments_memory(rows) <= self.allowed:
                return rows
        raise self._refusal("the upper tiles and a block of rows", self.moments_memory((wanted or [8])[-1]))

    def choose_method(self) -> tuple[str, str, str]:
        size = self.job.size
        if self.job.rank == 0:
            return "none", "float64", "rank 0: the covariance is the result"
        if size >= LAPACK_LIMIT:
            raise DoesNotFitError(
                f"LAPACK's eigendecomposition ends at {LAPACK_LIMIT - 1:,} columns and a row has {size:,}; "
                "use a smaller --resolution, or --rank 0 for mean and covariance alone"
            )
        for precision, width in (("float64", 8), ("float32", 4)):
            if self.direct_memory(width) <= self.allowed:
                why = f"its workspace of {show_size(self.direct_memory(width))} fits {show_size(self.allowed)}"
                return "direct", precision, f"direct in {precision}: {why}"
        raise self._refusal("the eigendecomposition in float32", self.direct_memory(4))

    def direct_memory(self, width: int) -> int:
        """Bytes of LAPACK's divide and conquer: the matrix, its eigenvectors and two more for the work."""
        return self.base + 4 * self.job.size**2 * width + 2 * self.tile_bytes

    def _refusal(self, what: str, needed: int) -> DoesNotFitError:
        return DoesNotFitError(
            f"{what} need {show_size(needed)} and {show_size(self.allowed)} are allowed; "
            f"raise --memory to {show_size(needed)} or more, or lower --resolution"
        )

    def product_seconds(self) -> float:
        """Seconds to multiply all rows."""
        return 2 * self.facts.samples * upper_entries(self.job.size) / self.machine.flops32

    def unit_bytes(self) -> int:
        """Bytes of shards that take about UNIT_SECONDS, and ten times as long as writing their partial."""
        decode = self.facts.samples * self.facts.decode_seconds / self.threads
        rate = self.facts.bytes / max(1e-6, self.product_seconds(), decode)
        writing = upper_entries(self.job.size) * 4 / self.machine.disk
        return int(rate * max(UNIT_SECONDS, 10 * writing))

    def stages(
        self, block: int, units: Sequence[tuple[int, int]], method: str, precision: str
    ) -> tuple[StagePlan, ...]:
        stages = [self._mean_pass()] if self.itemsize > 1 else []
        stages += [self._moments(block, len(units)), self._merge(len(units)), self._statistics()]
        if method != "none":
            stages += [self._spectrum(8 if precision == "float64" else 4), self._artifacts(), self._certificate()]
        return tuple(stages)

    def _stage(
        self, name: str, memory: int, read: float, written: float, requests: int, flops: float, seconds: float
    ) -> StagePlan:
        work = seconds + (read / 8 + written) / self.machine.disk  # what was written lately is read from memory
        return StagePlan(name, memory, int(written), int(read), int(written), requests, flops, work)

    def _mean_pass(self) -> StagePlan:
        decode = self.facts.samples * self.facts.decode_seconds / self.threads / self.job.workers
        memory = self.base + self.threads * (TRANSFER + 2 * self.facts.encoded) + 4096 * self.job.size * 4
        return self._stage("mean", memory, self.facts.bytes, self.job.size * 16, len(self.facts.shards), 0, decode)

    def _moments(self, block: int, units: int) -> StagePlan:
        written = units * upper_entries(self.job.size) * (4 if self.itemsize == 1 else 8)
        decode = self.facts.samples * self.facts.decode_seconds / self.threads
        seconds = max(self.product_seconds() + decode / 2, decode) / self.job.workers
        flops = 2.0 * self.facts.samples * upper_entries(self.job.size)
        requests = len(self.facts.shards) + units * (self.pairs + 2)
        return self._stage("moments", self.moments_memory(block), self.facts.bytes, written, requests, flops, seconds)

    def _merge(self, units: int) -> StagePlan:
        read, written = units * upper_entries(self.job.size) * 4, upper_entries(self.job.size) * 8
        memory = self.base + 5 * self.tile_bytes
        return self._stage("merge", memory, read, written, (units + 1) * self.pairs, 0, written / 1e9)

    def _statistics(self) -> StagePlan:
        width = 8 if self.job.dtype == "float64" else 4
        written, read = self.job.size**2 * width, upper_entries(self.job.size) * 8
        return self._stage("statistics", self.base + 8 * self.tile_bytes, read, written, 3 * self.pairs, 0, read / 5e8)

    def _rank(self) -> int:
        return self.job.size if self.job.rank == "full" else self.job.rank

    def _spectrum(self, width: int) -> StagePlan:
        size, flops = self.job.size, EIGH_FLOPS * self.job.size**3
        rate = self.machine.flops64 if width == 8 else self.machine.flops32
        written = size * self._rank() * 4
        return self._stage(
            "spectrum", self.direct_memory(width), size**2 * 4, written, 3 * self.pairs, flops, flops / rate
        )

    def _artifacts(self) -> StagePlan:
        values = self.job.size * self._rank() * 4
        memory = self.base + 4 * tile_of(self.job.size) * self.job.size * 4
        return self._stage("artifacts", memory, 2 * values, 2 * values, 4 + 4 * self.pairs, 0, 2 * values / 1e9)

    def _certificate(self) -> StagePlan:
        size, rank = self.job.size, self._rank()
        flops = 2.0 * size * size * rank + 1.0 * size * rank * rank
        memory = self.base + CERTIFICATE_BYTES + 3 * tile_of(size) * rank * 8 + 3 * self.tile_bytes
        return self._stage(
            "certificate",
            memory,
            size**2 * 4 + 2 * size * rank * 4,
            0,
            4 * self.pairs,
            flops,
            flops / self.machine.flops64,
        )
