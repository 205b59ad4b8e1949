"""Which method decomposes the covariance, and what its stages cost."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from .costs import CERTIFICATE_BYTES, EIGH_FLOPS, Costs, StagePlan, tile_of, upper_entries
from .errors import DoesNotFitError
from .sizes import show_size
from .svd.kernels import compiled_for

LAPACK_LIMIT = 32_767
"""Columns from which LAPACK's 32-bit workspace sizes overflow."""


@dataclass(frozen=True, slots=True)
class Effort:
    """What a stage of the blocked method takes, as operations at the rate of a large matrix product.

    Parameters
    ----------
    cubes, squares : float
        Multiples of d**3 and of d**2.
    """

    cubes: float
    squares: float

    def flops(self, size: int, share: float = 1.0) -> float:
        """Return the operations of a matrix of ``size`` columns, of which the method makes this share."""
        return (self.cubes * size + self.squares) * size**2 * share


BAND = {True: Effort(1.7, 1.3e4), False: Effort(3.0, 0)}
VECTORS = {True: Effort(5.6, 2e4), False: Effort(13.0, 0)}
"""By whether C works on them (measured, d = 3,072 to 12,288), as the next one."""
CHASE_SECONDS = {True: 5e-10, False: 1.8e-9}
"""Seconds, times b d**2, of bulge chasing and divide and conquer, on CPUs always."""
WIDTH, NARROW = 128, 64
"""Half-width of the band; and where its tiles stay in memory, so that a pass over them reads nothing, and C chases."""
SLAB = 8192
"""Eigenvectors that are made at a time where there is memory for them: each slab reads all reflectors anew."""
ABOUT = 1.1
"""What takes up to so many times as long is as quick: seconds are predictions."""
PASSES = 12
"""Panels of the size asked for that the randomized method multiplies by the matrix, about (measured on photographs)."""
QUICK = 1536
"""Up to this many columns LAPACK takes a second or two, and nothing else is worth while."""
FEW = 0.7
"""Samples, as a fraction of d, up to which the dual method is chosen: it must have N < d, and N is an estimate."""
WIDTHS = {"float64": 8, "float32": 4}


def dual_bytes(rows: int, size: int, rank: int) -> int:
    """Return the bytes that the dual method takes: the gram of the rows and its eigenvectors, and panels of columns."""
    rank, panel = min(rank, rows), rows * min(size, tile_of(size))
    return max(41 * rows**2 * 8 // 10, 8 * (2 * rank * rank + rows * rank)) + 3 * panel * 8 + (32 << 20)


@dataclass(frozen=True)
class Decomposition:
    """How the covariance is decomposed.

    Parameters
    ----------
    method : str
        direct, blocked, randomized, dual or none.
    precision, reason : str
    stages : tuple of StagePlan
    budget : int
        Bytes that the arrays of the method may take, where it can make do with less.
    width, slab : int
        Blocked: half-width of the band, and eigenvectors made at a time.
    kept : int
        Randomized: bytes of tiles that stay in memory between the passes.
    """

    method: str
    precision: str
    reason: str
    stages: tuple[StagePlan, ...] = ()
    budget: int = 0
    width: int = 0
    slab: int = 0
    kept: int = 0

    @property
    def memory(self) -> int:
        """Peak bytes."""
        return max(stage.memory for stage in self.stages)

    @property
    def seconds(self) -> float:
        """Predicted time."""
        return sum(stage.seconds for stage in self.stages)


@dataclass(frozen=True)
class Methods:
    """The methods that a job may use, each with what it costs.

    Parameters
    ----------
    costs : Costs
    allowed : int
        Bytes of memory.
    """

    costs: Costs
    allowed: int

    @cached_property
    def size(self) -> int:
        """Columns, d."""
        return self.costs.job.size

    @property
    def precisions(self) -> tuple[str, ...]:
        """What LAPACK may compute in: what results are stored in, and float64 where that costs next to nothing."""
        if self.costs.job.dtype == "float64":
            return ("float64",)
        return ("float64", "float32") if self.size <= QUICK else ("float32",)

    def choose(self) -> Decomposition:
        """Return the method that the job names, or the quickest one that fits.

        Raises
        ------
        DoesNotFitError
            Where none fits; names both sizes and the option to change.
        """
        job = self.costs.job
        if job.rank == 0:
            return Decomposition("none", "float64", "rank 0: the covariance is the result")
        if not job.covariance or job.svd == "dual":
            return self._fitting([self._dual()])
        makers = {"direct": self._direct, "blocked": self._blocked, "randomized": self._randomized}
        if job.svd != "auto":
            return self._fitting(list(makers[job.svd]()))
        direct = list(self._direct())
        if self.size <= QUICK and (fits := [item for item in direct if item.memory <= self.allowed]):
            return fits[0]
        found = [*direct, *self._randomized(), *self._blocked()]
        if self._is_dual_sure:
            found.append(self._dual())
        return self._fitting(found)

    def _fitting(self, found: list[Decomposition]) -> Decomposition:
        """Return the quickest of those that fit: of a method the more precise one, of two as quick the smaller one."""
        fits: dict[str, Decomposition] = {}
        for item in found:
            if item.memory <= self.allowed:
                fits.setdefault(item.method, item)
        if not fits:
            least = min(found, key=lambda item: item.memory) if found else None
            raise self._refusal(least)
        quickest = min(item.seconds for item in fits.values())
        about = [item for item in fits.values() if item.seconds <= ABOUT * quickest]
        return min(about, key=lambda item: (item.memory, item.seconds))

    def _refusal(self, least: Decomposition | None) -> DoesNotFitError:
        if least is None:
            return DoesNotFitError(
                f"LAPACK's eigendecomposition ends at {LAPACK_LIMIT - 1:,} columns and a row has {self.size:,}; "
                "use another --svd, a smaller --resolution, or --rank 0 for mean and covariance alone"
            )
        needed = show_size(least.memory)
        return DoesNotFitError(
            f"the {least.method} method in {least.precision} needs {needed} and {show_size(self.allowed)} are allowed; "
            f"raise --memory to {needed} or more, lower --resolution or --rank, or use --rank 0"
        )

    def _direct(self) -> Iterator[Decomposition]:
        if self.size >= LAPACK_LIMIT or self.costs.job.is_adaptive:
            return
        for precision in self.precisions:
            stage = self.costs.spectrum(precision)
            why = f"direct in {precision}: its workspace of {show_size(stage.memory)} fits {show_size(self.allowed)}"
            yield Decomposition("direct", precision, why, (stage,))

    def _blocked(self) -> Iterator[Decomposition]:
        """In float64 only where the result is: a second precision would double the time out of core."""
        if self.costs.job.is_adaptive or self.size < 2:
            return
        import torch

        from .svd.band import least_bytes  # needs torch

        costs, precision = self.costs, self.costs.job.dtype
        width = WIDTHS[precision]
        fixed = costs.base + 4 * costs.tile_bytes
        whole = upper_entries(self.size) * width
        in_c, reach = self._is_in_c, NARROW
        least = least_bytes(self.size, reach, getattr(torch, precision))
        if not in_c or fixed + least + whole > self.allowed:
            reach = WIDTH
            least = least_bytes(self.size, reach, getattr(torch, precision))
        budget = max(least, min(self.allowed - fixed, least + whole))
        flops = BAND[in_c].flops(self.size), VECTORS[in_c].flops(self.size, costs.rank / self.size)
        chase = CHASE_SECONDS[compiled_for(self.size) is not None] * reach * self.size**2
        rate = costs.machine.flops64 if width == 8 else costs.machine.flops32
        matrix = upper_entries(self.size) * width
        first = costs.stage(
            "band", fixed + budget, read=upper_entries(self.size) * 8, flops=flops[0],
            written=(1 if budget >= least + whole else 2) * matrix,
            seconds=flops[0] / rate,
        )  # fmt: skip
        second = costs.stage(
            "tridiagonal", costs.base + self._tridiagonal_bytes(), written=matrix, seconds=chase,
            flops=7.0 * reach * self.size**2,
        )  # fmt: skip
        slab = self._slab(width)
        slabs = -(-costs.rank // slab)
        third = costs.stage(
            "vectors", costs.base + self._slab_bytes(slab, width), read=slabs * 2 * matrix, flops=flops[1],
            written=self.size * costs.rank * width, seconds=flops[1] / rate / costs.machines,
        )  # fmt: skip
        why = f"blocked in {precision}: two stages to a tridiagonal, {show_size(budget)} of tiles at a time"
        yield Decomposition("blocked", precision, why, (first, second, third), budget, reach, slab)

    def _tridiagonal_bytes(self) -> int:
        """Bytes of the band and its spread, of the sweeps under way, and of what waits to be written (measured)."""
        return 8 * self.size * (5 * WIDTH + self.size // (2 * WIDTH)) + (32 << 20)

    def _slab(self, width: int) -> int:
        """Return how many eigenvectors are made at a time: tile columns, or a part of one, as many as fit."""
        tile, rank = tile_of(self.size), self.costs.rank
        columns = -(-rank // tile)
        workers = max(self.costs.job.workers, self.costs.machine.workers)
        tasks = max(1, min(columns, max(-(-rank // SLAB), workers)))
        slab = min(rank, tile * -(-columns // tasks))
        while slab > 32 and self.costs.base + self._slab_bytes(slab, width) > self.allowed:
            if slab > tile:
                tasks += 1
                slab = tile * -(-columns // tasks)
            else:
                slab = -(-slab // 2)
        return slab

    def _slab_bytes(self, slab: int, width: int) -> int:
        """Bytes of a slab while it is transformed, of panels (BLAS copies some), reflectors and the merges' data."""
        blocks = 0 if self._is_in_c else 40 * WIDTH  # of reflectors, made in float64
        return 3 * self.size * slab * width + self.size * (7 * WIDTH * width + 96 * 8 + blocks) + (16 << 20)

    @property
    def _is_in_c(self) -> bool:
        """Whether C applies the reflectors."""
        return compiled_for(self.size) is not None and self.costs.machine.device == "cpu"

    def _randomized(self) -> Iterator[Decomposition]:
        if self.costs.job.rank == "full":
            return
        costs, wanted, precision = self.costs, self.costs.rank, self.costs.job.dtype
        width = WIDTHS[precision]
        columns = min(self.size, 4 * wanted + 256)
        fixed = costs.base + 3 * costs.tile_bytes
        panels = (columns + 5 * 128) * self.size * width + 32 * columns**2
        least = (wanted + 96) * self.size * width + 32 * (wanted + 16) ** 2
        budget = max(least, min(self.allowed - fixed, panels))
        flops = 2.0 * PASSES * self.size**2 * wanted
        rate = costs.machine.flops64 if width == 8 else costs.machine.flops32
        kept = max(0, min(self.allowed - fixed - budget, upper_entries(self.size) * width))
        passes = -(-PASSES * wanted // 128) * (1 - kept // (upper_entries(self.size) * width)) + 1
        stage = costs.stage(
            "spectrum", fixed + budget + kept, read=passes * upper_entries(self.size) * width, flops=flops,
            written=self.size * wanted * width, seconds=1.3 * flops / rate,
        )  # fmt: skip
        asked = f"rank {costs.job.rank}" + (f", about {wanted:,} of them" if costs.job.is_adaptive else "")
        why = f"randomized in {precision}: {asked} of {self.size:,} eigenvectors"
        yield Decomposition("randomized", precision, why, (stage,), budget, kept=kept)

    @property
    def _is_dual_sure(self) -> bool:
        """Whether there are certainly fewer rows than columns, and all of them are read by this run."""
        job, facts = self.costs.job, self.costs.facts
        alone = not (job.extend or job.augment or job.group_by) and bool(facts.shards)
        return alone and job.strategy != "resident" and 1 < facts.samples <= FEW * self.size

    def _dual(self) -> Decomposition:
        costs, rows = self.costs, self.costs.facts.samples
        if rows >= self.size:
            raise DoesNotFitError(
                f"the dual method needs fewer samples than values of a row: there are about {rows:,} samples and "
                f"{self.size:,} values; use another --svd with the covariance, or a larger --resolution"
            )
        if not costs.facts.shards:
            raise DoesNotFitError("the dual method needs the rows, and this run takes moments over; use another --svd")
        rank = min(costs.rank, rows)
        memory = costs.base + dual_bytes(rows, self.size, rank)
        flops = EIGH_FLOPS * rows**3 + 2.0 * rows * self.size * (rows + rank)
        staged = rows * self.size * costs.itemsize
        stage = costs.stage(
            "spectrum", memory, read=3 * staged, written=self.size * rank * WIDTHS[costs.job.dtype], flops=flops,
            seconds=1.3 * flops / costs.machine.flops64,
        )  # fmt: skip
        why = f"dual: about {rows:,} rows of {self.size:,} values, so their {rows:,} x {rows:,} gram has the spectrum"
        return Decomposition("dual", "float64", why, (stage,), CERTIFICATE_BYTES)
