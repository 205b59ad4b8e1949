"""What stages cost: bytes, flops and seconds as plain arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tilecov.storage.readahead import RANGE_BYTES, WINDOW_BYTES

from .ahead import SIDE_BY_SIDE
from .bounds import INT32_ROWS
from .job import Job
from .machine import Machine
from .units import bytes_of

if TYPE_CHECKING:
    from .facts import DatasetFacts

TILE = 1024
WHOLE = 1536
"""Up to this many columns the matrix is a single tile."""
EIGH_FLOPS = 13.0
"""Multiples of d**3, at the rate of a large matrix product, that LAPACK's eigh takes (measured, d = 12,288)."""
RUNTIME = 32 << 20
"""Bytes that thread pools, BLAS buffers, the allocator and late imports take beside the arrays counted here."""
WORKER = 96 << 20
"""Bytes that Dask takes in a worker."""
DECODE_BYTES = 16
"""Bytes a pixel that decoding holds at most: the picture, Pillow's padded copies and the resized rows."""
TILE_COPIES = 8
"""Float64 tiles' worth that summing, moving, hashing and writing tiles hold at a time (measured)."""
TRANSFER = 10 << 20
"""Bytes of encoded samples a decoder holds at most: its batches, their copies, and the chunks that they lie in."""
READ_SECONDS = 8e-6
"""What a sample takes beside its decoding: its headers are read and it is handed over (measured)."""
FORK_SECONDS = 0.4
"""Reading and decoding, on one core, from which the time to fork decoders is small."""
FORK_BYTES = 128 << 10
"""Encoded bytes of a sample, on average, up to which threads would wait for the interpreter as long as they decode."""
MOSTLY = 0.5
"""The share of samples that C decodes a batch at a time from which threads wait for the interpreter no longer."""
BLOCKS = 2
"""Blocks in flight: one is used while the next is filled."""
FIRST_BLOCK = 512
"""Rows of the first block; each later one may have twice as many, so that the products soon have something to do."""
KEEPING = frozenset({"merge", "statistics", "spectrum", "artifacts", "certificate"})
"""Stages that keep what they free for the next arrays, most of them tiles, which makes them quicker."""
SPARE = 64 << 20
"""Bytes that must be left above such a stage: what is kept adds up to 15 MiB to it (measured), but no rule says so."""
SLICING = 5 << 18
"""Bytes that a thread takes to cut factors for int8 matrix units and to multiply them."""
CERTIFICATE_BYTES = 256 << 20
"""Bytes that U or the certificate's bands may take beside a few slabs of U and a few tiles, where there are no more."""


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What one stage takes.

    Parameters
    ----------
    name : str
    memory : int
        Peak bytes of each process, the imports counted in.
    disk : int
        Bytes that the stage adds to the run folder.
    read, written : int
        Bytes.
    requests : int
        Files read and written.
    flops : float
    seconds : float
    keeps_freed : bool
        Whether the arrays that are freed are kept for the next ones, where ``SPARE`` is left.
    """

    name: str
    memory: int
    disk: int
    read: int
    written: int
    requests: int
    flops: float
    seconds: float
    keeps_freed: bool = False


def tile_of(size: int) -> int:
    """Return the tile of a matrix with ``size`` columns: a function of d alone, so that runs can be merged."""
    return size if size <= WHOLE else TILE


def tiles_of(size: int) -> int:
    """Return the tiles a side."""
    return -(-size // tile_of(size))


def lapack_bytes(size: int, width: int) -> int:
    """Return the bytes of a matrix, in whose place U comes, and two for divide and conquer's work (measured)."""
    return 31 * size**2 * width // 10


def upper_entries(size: int) -> int:
    """Return the entries of the upper tiles."""
    tile = tile_of(size)
    diagonal = sum(min(tile, size - i * tile) ** 2 for i in range(tiles_of(size)))
    return (size * size + diagonal) // 2


@dataclass(frozen=True)
class Costs:
    """Bytes, flops and seconds of each stage of a job.

    Parameters
    ----------
    job : Job
    facts : DatasetFacts
    machine : Machine
    """

    job: Job
    facts: "DatasetFacts"
    machine: Machine

    @property
    def threads(self) -> int:
        """Decode threads a process."""
        return self.job.decode_threads or max(1, self.machine.reading_cores // self.job.workers)

    @property
    def machines(self) -> int:
        """How many times this machine's speed the workers have: a scheduler's have cores each, others share them."""
        return max(1, self.machine.workers)

    @property
    def itemsize(self) -> int:
        """Bytes of a value of a row."""
        return {"uint8": 1, "float32": 4, "float64": 8}[self.facts.kind]

    @property
    def is_exact(self) -> bool:
        """Whether rows are uint8, so that moments are integers."""
        return self.facts.kind == "uint8"

    @property
    def base(self) -> int:
        """Bytes of a process that holds nothing."""
        return self.machine.baseline + RUNTIME + (WORKER if self.job.workers > 1 or self.job.scheduler else 0)

    @property
    def tile_bytes(self) -> int:
        """Bytes of a float64 tile."""
        return tile_of(self.job.size) ** 2 * 8

    @property
    def pairs(self) -> int:
        """Upper tiles."""
        return tiles_of(self.job.size) * (tiles_of(self.job.size) + 1) // 2

    @property
    def groups(self) -> int:
        """Sets of moments that are kept at a time."""
        return self.job.max_groups if self.job.group_by else 1

    def decoding(self) -> int:
        """Bytes of the decoders: encoded samples and the pictures being decoded; what is read ahead of a store."""
        remote = not all(shard.is_local for shard in self.facts.shards)
        ahead = WINDOW_BYTES + RANGE_BYTES if remote else 0
        return ahead + self.threads * (TRANSFER + 2 * self.facts.encoded + DECODE_BYTES * self.usual_pixels)

    @property
    def forked(self) -> bool:
        """Whether decoders are processes: where there are several, many samples, and small ones decoded one by one."""
        much = self.facts.samples * (self.facts.decode_seconds + READ_SECONDS) >= FORK_SECONDS
        alone = self.facts.batched < MOSTLY
        return self.threads > 1 and much and alone and self.facts.encoded <= FORK_BYTES

    @property
    def usual_pixels(self) -> int:
        """Pixels of a picture that every decode thread may hold."""
        return max(self.facts.pixels, self.job.resolution**2)

    def centred(self, rows: int, columns: int) -> int:
        """Bytes of a block of rows made ready for the products.

        That is int8 or float32 for uint8 rows; for floats float32, with a tile column of float64 on the way.
        """
        if not self.is_exact:
            return rows * columns * (4 + 8 // max(1, tiles_of(self.job.size)))
        if self.machine.kernel == "int8":  # a tile column twice, and what each thread works in
            return rows * (columns + tile_of(self.job.size)) + self.machine.reading_cores * (3 << 19)
        return rows * columns * 4

    def accumulator(self, entries: int, *, wide: bool = False) -> int:
        """Bytes of the sums of ``entries`` products."""
        return entries * (4 if self.is_exact and not wide else 8)

    def resident_memory(self, rows: int) -> int:
        """Bytes while units are read and multiplied, all upper tiles in memory."""
        gram = self.accumulator(upper_entries(self.job.size)) * self.groups
        blocks = self.blocks(rows, self.blocks_multiplied) * (2 if self.job.group_by else 1)
        work = self.centred(self.tallest(rows), self.job.size) + 5 * self.tile_bytes
        return self.base + gram + blocks + work + self.decoding()

    @property
    def blocks_multiplied(self) -> int:
        """Blocks in flight where they are multiplied.

        Decoders beside products whose threads wait for each other only make all of them wait (docs/decisions.md), so
        reading ahead pays where it waits for a network, where an accelerator multiplies, or threads wait for none.
        """
        alike = self.machine.device == "cpu" and not self.machine.apart
        return 1 if alike and all(shard.is_local for shard in self.facts.shards) else BLOCKS

    def rows_memory(self, rows: int) -> int:
        """Bytes while rows are staged."""
        return self.base + self.blocks(rows) + 12 * self.tile_bytes // 8 + self.decoding()

    def blocks(self, rows: int, ahead: int = BLOCKS) -> int:
        """Bytes of the blocks in flight; fewer where there are not so many samples, unless they are pinned."""
        row, pinned = self.job.size * self.itemsize, ahead * (self.machine.device == "cuda")  # torch rounds these up
        return max(pinned << (rows * row - 1).bit_length(), min(ahead * self.tallest(rows), self._most_samples) * row)

    def tallest(self, rows: int) -> int:
        """Return the rows of the tallest block that is filled, ``rows`` where there are samples enough: they grow."""
        left, tallest, limit = self._most_samples, 0, FIRST_BLOCK
        while left > 0 and tallest < rows:
            tallest, left, limit = max(tallest, min(limit, rows, left)), left - limit, 2 * limit
        return tallest

    @property
    def _most_samples(self) -> int:
        """The samples, of which the plan may know only an estimate, with a margin."""
        return self.facts.samples * 5 // 4 + 1

    def tiles_memory(self, side: int, rows: int) -> int:
        """Bytes while a group of ``side`` x ``side`` tiles is summed from staged rows."""
        tile, tiles = tile_of(self.job.size), tiles_of(self.job.size)
        alone = side >= tiles
        entries = upper_entries(self.job.size) if alone else side * side * tile * tile
        columns = min(self.job.size, (side if alone else 2 * side) * tile)
        panels = 2 * rows * columns * self.itemsize
        work = self.centred(rows, columns) + TILE_COPIES * self.tile_bytes
        return self.base + self.accumulator(entries, wide=self.wide) + panels + work

    @property
    def wide(self) -> bool:
        """Whether staged sums must be int64 from the start: int32 would not hold that many rows."""
        return self.facts.samples > INT32_ROWS and self.is_exact

    def direct_memory(self, width: int) -> int:
        """Bytes of LAPACK's divide and conquer."""
        return self.base + lapack_bytes(self.job.size, width) + 2 * self.tile_bytes

    def product_seconds(self) -> float:
        """Seconds to multiply all rows."""
        rate = (self.is_exact and self.machine.exact) or self.machine.flops32
        return 2 * self.facts.samples * upper_entries(self.job.size) / rate

    def decode_seconds(self) -> float:
        """Seconds to read and decode all samples; one thread of a process reads, and a scheduler's machine has one."""
        processes = 1 if self.machine.workers else self.job.workers
        shared = (self.facts.decode_seconds + READ_SECONDS) / min(self.threads * processes, self.machine.reading_cores)
        return self.facts.samples * max(READ_SECONDS / processes, shared)

    def stage(self, name: str, memory: int, **cost: Any) -> StagePlan:
        """Return a stage; bytes written lately are read from memory, so reading counts an eighth."""
        read, written, requests = (int(cost.get(what, 0)) for what in ("read", "written", "requests"))
        seconds = cost.get("seconds", 0.0) + (read / 8 + written) / self.machine.disk + 0.03
        flops, disk = cost.get("flops", 0.0), int(cost.get("disk", written))
        return StagePlan(name, memory, disk, read, written, requests, flops, seconds)

    def reading_stages(self, block: int, units: int) -> list[StagePlan]:
        """Return the stages of the resident strategy."""
        stages = []
        if not self.is_exact and not self.job.extend:
            memory = self.base + self.decoding() + 2 * block * self.job.size * self.itemsize + block * self.job.size * 8
            seconds = self.decode_seconds() / self.machines
            stages.append(
                self.stage("mean", memory, read=self.facts.bytes, seconds=seconds, requests=len(self.facts.shards))
            )
        written = units * self.accumulator(upper_entries(self.job.size)) * self.groups
        decode, product = self.decode_seconds(), self.product_seconds()
        seconds = (max(product, decode) + min(product, decode) / 2) / self.machines
        requests = len(self.facts.shards) + units * (self.pairs + 2) * self.groups
        flops = 2.0 * self.facts.samples * upper_entries(self.job.size)
        cost = {"read": self.facts.bytes, "written": written, "requests": requests, "flops": flops, "seconds": seconds}
        return [*stages, self.stage("moments", self.resident_memory(block), **cost)]

    def staging_stages(self, block: int, side: int, groups: Sequence[Any]) -> list[StagePlan]:
        """Return the stages of the staged strategy."""
        size, rows = self.job.size, self.facts.samples
        staged = rows * size * self.itemsize
        blocks = -(-rows // block) * tiles_of(size)
        reads = sum(min(size, len({*left, *right}) * tile_of(size)) for left, right in groups) * rows * self.itemsize
        first = self.stage(
            "rows", self.rows_memory(block), read=self.facts.bytes, written=staged,
            requests=len(self.facts.shards) + blocks, seconds=self.decode_seconds() / self.machines,
        )  # fmt: skip
        second = self.stage(
            "tiles", self.tiles_memory(side, block), read=reads, written=upper_entries(size) * 8,
            requests=reads // max(1, block * tile_of(size) * self.itemsize), flops=2.0 * rows * upper_entries(size),
            seconds=1.1 * self.product_seconds() / self.machines,
        )  # fmt: skip
        return [first, second]

    def merge(self, units: int) -> StagePlan:
        """Return the adding up of partials."""
        if not self.job.covariance:
            return self.gather()
        entries = upper_entries(self.job.size) * self.groups
        read, written = (
            units * self.accumulator(entries),
            entries * 8 + (self.groups > 1) * upper_entries(self.job.size) * 8,
        )
        memory = self.base + 3 * SIDE_BY_SIDE * self.tile_bytes
        return self.stage(
            "merge", memory, read=read, written=written, requests=(units + 1) * self.pairs, seconds=written / 2e8
        )

    def gather(self) -> StagePlan:
        """Return the merge of staged tiles, which lie where they belong: their digest and the sums of the units."""
        memory = self.base + self.tile_bytes + 256 * self.job.size
        return self.stage("merge", memory, written=4 * 8 * self.job.size)

    def augment(self) -> StagePlan:
        """Return the permutation of tiles by symmetries."""
        steps = {"hflip": 1, "vflip": 1, "rot90": 2, "d4": 3}[self.job.augment or "hflip"]
        written = steps * 2 * self.job.size**2 * 8
        memory = self.base + 3 * tile_of(self.job.size) * self.job.size * 8
        cost = {
            "read": written,
            "written": written,
            "disk": 2 * self.job.size**2 * 8,
            "requests": steps * 4 * self.pairs,
        }
        return self.stage("augment", memory, seconds=written / 5e8, **cost)

    def statistics(self) -> StagePlan:
        """Return the finalising of mean and covariance."""
        if not self.job.covariance:
            return self.stage("statistics", self.base, written=self.job.size * 8)
        width = 8 if self.job.dtype == "float64" else 4
        sets = 1 + self.groups * bool(self.job.group_by)
        written, read = sets * self.job.size**2 * width, sets * upper_entries(self.job.size) * 8
        cost = {"read": read, "written": written, "requests": 3 * self.pairs, "seconds": read / 2e8}
        return self.stage("statistics", self.base + 7 * self.tile_bytes, **cost)

    @property
    def rank(self) -> int:
        """Eigenvectors kept, or a guess where the spectrum decides."""
        if isinstance(self.job.rank, int):
            return self.job.rank
        return min(self.job.size, max(512, self.job.size // 16)) if self.job.is_adaptive else self.job.size

    def spectrum(self, precision: str) -> StagePlan:
        """Return the direct decomposition."""
        width = 8 if precision == "float64" else 4
        flops = EIGH_FLOPS * self.job.size**3
        rate = self.machine.flops64 if width == 8 else self.machine.flops32
        written = self.job.size * self.rank * (8 if self.job.dtype == "float64" else 4)
        cost = {
            "read": upper_entries(self.job.size) * 8,
            "written": written,
            "requests": 2 * self.pairs,
            "flops": flops,
        }
        return self.stage("spectrum", self.direct_memory(width), seconds=flops / rate, **cost)

    def artifacts(self, rank: int) -> StagePlan:
        """Return the writing of the four files, ``rank`` eigenvectors in them."""
        values = self.job.size * rank * 4
        tile = tile_of(self.job.size)
        bands = 4 * tile * rank + 4 * min(tile, rank) * self.job.size  # of U, and of Vh
        memory = self.base + bands + 3 * SIDE_BY_SIDE * self.tile_bytes
        cost = {"read": 2 * values, "written": 2 * values, "requests": 4 + 4 * self.pairs, "seconds": 2 * values / 4e8}
        return self.stage("artifacts", memory, **cost)

    def certificate(self, rank: int, allowed: int) -> tuple[StagePlan, int]:
        """Return the measuring of the artifacts, and the bytes for U or bands of it: more of them, fewer passes."""
        size, tile = self.job.size, tile_of(self.job.size)
        flops, rate = 2.0 * size * size * rank + 1.0 * size * rank * rank, self.machine.flops32
        if not self.job.covariance:  # over the rows, in float64
            flops, rate = 4.0 * self.facts.samples * size * rank + size * rank * rank, self.machine.flops64 * 1.5
        # A slab is read, copied, multiplied, and added up in float64; four tiles are put side by side.
        fixed = self.base + 24 * tile * rank + 8 * self.tile_bytes
        # All of U, so that it is read once; where the spectrum decides how much that is, four times the guess.
        wanted = 4 * size * (min(size, 4 * rank) if self.job.is_adaptive else rank)
        if not self.job.covariance:
            fixed += self.facts.samples * tile * (2 * 8 + 4 + 2 * self.itemsize)  # panels of rows: centred, read ahead
            bands = min(CERTIFICATE_BYTES, max(2 * 8 * rank * size, 3 * 8 * rank * rank))
        else:
            cut = bytes_of(rank, size) + bytes_of(max(tile, 512), size)  # U and columns of S, for int8 matrix units
            if self.machine.sliced:
                fixed, wanted = fixed + SLICING * self.machine.cores, max(wanted, cut)
            bands = min(wanted, max(CERTIFICATE_BYTES, allowed - fixed))
            if cut <= bands:
                rate = max(rate, self.machine.sliced)
        memory = fixed + bands
        cost = {"read": size**2 * 4 + 2 * size * rank * 4, "requests": 4 * self.pairs, "flops": flops}
        return self.stage("certificate", memory, seconds=1.5 * flops / rate, **cost), bands
