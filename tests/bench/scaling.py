"""What two jobs that nobody runs on a laptop take, by the program's own constants: the tables of docs/scaling.md.

Usage: scaling.py

Pure arithmetic. ``Cluster`` holds what is assumed, ``ONE_CORE`` what was measured on the machine of docs/bench.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tilecov.pipeline.bounds import INT32_ROWS
from tilecov.pipeline.costs import EIGH_FLOPS, READ_SECONDS, tiles_of, upper_entries
from tilecov.pipeline.methods import BAND, LAPACK_LIMIT, PASSES, VECTORS
from tilecov.storage.readahead import FIRST_BYTES, RANGE_BYTES, WINDOW_BYTES

ONE_CORE = 16_000
"""Images of 64 x 64 x 3 that a core reads and decodes a second (PNG, about; docs/bench/peers.md)."""
BYTES_A_VALUE = 0.58
"""Of a PNG in a shard, its tar header counted in: 7,117 bytes for 12,288 values (dead leaves)."""
SHARD = 1 << 30
PANEL = 128
"""Columns that the randomized method multiplies in a pass."""
RANK = 1024


@dataclass(frozen=True)
class Cluster:
    """What is assumed, a GPU each: an H100 with its share of a host.

    Parameters
    ----------
    gpus : int
    cores : int
        A GPU.
    int8, float32 : float
        Operations a second: a quarter of the 1,979e12, half of the 67e12 that its maker states.
    link : float
        Bytes a second to the store, a GPU.
    memory : float
        Bytes of a GPU that a job may use.
    """

    gpus: int = 64
    cores: int = 16
    int8: float = 4.9e14
    float32: float = 3.3e13
    link: float = 1e9
    memory: float = 0.8 * 80e9


@dataclass(frozen=True)
class Dataset:
    """Images of one size.

    Parameters
    ----------
    name : str
    images, side : int
    """

    name: str
    images: int
    side: int

    @property
    def size(self) -> int:
        """Values of a row, d."""
        return 3 * self.side**2

    @property
    def bytes(self) -> float:
        """Of all shards."""
        return self.images * self.size * BYTES_A_VALUE

    @property
    def pairs(self) -> int:
        """Upper tiles, P."""
        return tiles_of(self.size) * (tiles_of(self.size) + 1) // 2

    @property
    def gets(self) -> float:
        """Ranged requests: the first of a shard is short."""
        return self.bytes / SHARD * (1 + (SHARD - FIRST_BYTES) / RANGE_BYTES)

    @property
    def decoding(self) -> float:
        """Core-seconds; pixels cost alike at any size."""
        return self.images * (self.side / 64) ** 2 / ONE_CORE

    @property
    def products(self) -> float:
        """Operations of the covariance, 2 N E."""
        return 2.0 * self.images * upper_entries(self.size)

    @property
    def parts(self) -> int:
        """Partials, where all upper tiles fit a worker: each holds as many rows as int32 keeps exact."""
        return -(-self.images // INT32_ROWS)


FIVE_BILLION = Dataset("5 billion, 64 x 64", 5_000_000_000, 64)
IMAGENET = Dataset("1.28 million, 256 x 256", 1_280_000, 256)
CLUSTER = Cluster()

Rows = Callable[[Dataset, Cluster], Iterator[tuple[str, str, str]]]


def main() -> None:
    """Print the tables."""
    sys.stdout.write("\n\n".join(tables()) + "\n")


def tables() -> Iterator[str]:
    """Yield them."""
    yield table(statistics, "what | formula")
    yield table(staged_or_resident, "what | formula")
    yield table(spectra, "what | formula")


def table(rows: Rows, first: str) -> str:
    """Return a table of both datasets."""
    found = [list(rows(dataset, CLUSTER)) for dataset in (FIVE_BILLION, IMAGENET)]
    lines = [f"| {first} | {FIVE_BILLION.name} | {IMAGENET.name} |", "| --- | --- | ---: | ---: |"]
    lines += [
        f"| {what} | {formula} | {left} | {right} |"
        for (what, formula, left), (_, _, right) in zip(*found, strict=True)
    ]
    return "\n".join(lines)


def statistics(data: Dataset, cluster: Cluster) -> Iterator[tuple[str, str, str]]:
    """Yield what reading and multiplying take."""
    hosts = cluster.gpus * cluster.cores
    yield "d", "3 R^2", f"{data.size:,}"
    yield "upper tiles, P", "T (T + 1) / 2, T = d / 1,024", f"{data.pairs:,}"
    yield "their entries, E", "P 1,024^2", count(upper_entries(data.size))
    yield "bytes of the shards", f"{BYTES_A_VALUE} N d", size(data.bytes)
    yield "ranged GETs", "a 2 MiB", count(data.gets)
    yield (
        "read through the links",
        f"bytes / ({cluster.gpus} x {size(cluster.link)}/s)",
        time(data.bytes / cluster.gpus / cluster.link),
    )
    yield (
        "latency of a range up to which its window fills a link",
        f"{size(WINDOW_BYTES)} / ({size(cluster.link)}/s)",
        f"{1000 * WINDOW_BYTES / cluster.link:.0f} ms",
    )
    yield (
        "headers read and samples handed over, one thread a worker",
        f"N {1e6 * READ_SECONDS:.0f} us / {cluster.gpus}",
        time(data.images * READ_SECONDS / cluster.gpus),
    )
    yield "decode", f"N (R / 64)^2 / {ONE_CORE:,} core-seconds", time(data.decoding) + " of a core"
    yield "the same on all cores", f"/ {hosts:,}", time(data.decoding / hosts)
    yield "operations of the covariance", "2 N E", f"{data.products:.1e}"
    yield (
        "the same on all GPUs, int8",
        f"/ ({cluster.gpus} x {cluster.int8:.1e}/s)",
        time(data.products / cluster.gpus / cluster.int8),
    )


def staged_or_resident(data: Dataset, cluster: Cluster) -> Iterator[tuple[str, str, str]]:
    """Yield what lies between reading and the covariance."""
    entries, resident = upper_entries(data.size), 4 * upper_entries(data.size) < cluster.memory
    side = group_side(data, cluster)
    groups = tiles_of(data.size) / side
    yield "strategy", "4 E against 0.8 x 80 GB", f"{'resident' if resident else 'staged'}, {size(4 * entries)}"
    yield "partials", "N / 131,071, at the least", f"{data.parts:,}" if resident else "none"
    yield "their bytes, written and read again", "4 E each", size(4.0 * entries * data.parts) if resident else "none"
    yield "their PUTs, and GETs again", "P each", count(data.pairs * data.parts) if resident else "none"
    yield "merged by one process", "at 1 GB/s", time(4e-9 * entries * data.parts) if resident else "none"
    yield "staged rows, bytes", "N d", "none" if resident else size(float(data.images) * data.size)
    yield "their PUTs", "N d / 1 MiB", "none" if resident else count(float(data.images) * data.size / 2**20)
    yield "tiles a side of a group, s", "64 groups or more", "none" if resident else f"{side}"
    yield (
        "staged rows read",
        "(T / s + 1) N d",
        "none" if resident else size((groups + 1) * float(data.images) * data.size),
    )
    reads = (groups + 1) * float(data.images) * data.size
    yield "their GETs", "/ 1 MiB", "none" if resident else count(reads / 2**20)
    yield (
        "read through the links",
        f"/ ({cluster.gpus} x {size(cluster.link)}/s)",
        "none" if resident else time((groups + 1) * data.images * data.size / cluster.gpus / cluster.link),
    )
    yield "moments on disk", "8 E", size(8.0 * entries)
    yield "covariance on disk", "4 d^2", size(4.0 * data.size**2)
    yield "written by one process", "at 1 GB/s", time(4e-9 * (2 * entries + data.size**2))


def group_side(data: Dataset, cluster: Cluster) -> int:
    """Return the largest side of a group of tiles of which there are enough for every GPU."""
    tiles = tiles_of(data.size)
    sides = range(tiles, 0, -1)
    return next(
        side for side in sides if -(-tiles // side) * (-(-tiles // side) + 1) // 2 >= min(cluster.gpus, data.pairs)
    )


def spectra(data: Dataset, cluster: Cluster) -> Iterator[tuple[str, str, str]]:
    """Yield what the decompositions take."""
    d, entries = data.size, upper_entries(data.size)
    direct = d < LAPACK_LIMIT
    flops, whole = EIGH_FLOPS * d**3, BAND[True].flops(d) + VECTORS[True].flops(d)
    passes = -(-PASSES * RANK // PANEL)
    yield "direct: memory", "3.1 x 8 d^2", size(3.1 * 8 * d * d) + ("" if direct else ": not possible")
    yield "direct: operations", "13 d^3", f"{flops:.1e}" if direct else f"LAPACK ends at {LAPACK_LIMIT - 1:,}"
    yield "direct: 16 cores of 40e9 flops", "/ 6.4e11", time(flops / 6.4e11) if direct else "not possible"
    yield "blocked, full rank: operations", "7.3 d^3 + 33,000 d^2", f"{whole:.1e}"
    yield "blocked: 16 cores of 80e9 flops, float32", "/ 1.3e12", time(whole / 1.3e12)
    yield f"rank {RANK:,}: passes over the tiles", f"12 k / {PANEL}", f"{passes}"
    yield f"rank {RANK:,}: bytes read", "4 E a pass", size(4.0 * entries * passes)
    yield f"rank {RANK:,}: the same by one process", "at 1 GB/s", time(4e-9 * entries * passes)
    yield f"rank {RANK:,}: operations", "24 d^2 k", f"{2.0 * PASSES * d * d * RANK:.1e}"
    yield (
        f"rank {RANK:,}: the same on one GPU, float32",
        f"/ {cluster.float32:.1e}",
        time(2.0 * PASSES * d * d * RANK / cluster.float32),
    )
    yield "artifacts, full rank", "8 d^2", size(8.0 * d * d)
    yield f"artifacts, rank {RANK:,}", "8 d k", size(8.0 * d * RANK)


def size(value: float) -> str:
    """Return bytes in words."""
    power = next(power for power in (15, 12, 9, 6) if value >= 10**power)
    return f"{value / 10**power:,.3g} {({15: 'PB', 12: 'TB', 9: 'GB', 6: 'MB'})[power]}"


def time(seconds: float) -> str:
    """Return seconds in words."""
    unit, name = next(
        (unit, name) for unit, name in ((86400, "d"), (3600, "h"), (60, "min"), (0, "s")) if seconds >= 1.5 * unit
    )
    return f"{seconds / (unit or 1):,.2g} {name}" if seconds / (unit or 1) < 100 else f"{seconds / unit:,.0f} {name}"


def count(value: float) -> str:
    """Return a count in words."""
    if value >= 1e9:
        return f"{value / 1e9:.3g} billion"
    return f"{value / 1e6:.3g} million" if value >= 1e6 else f"{round(value, -2):,.0f}"


if __name__ == "__main__":
    main()
